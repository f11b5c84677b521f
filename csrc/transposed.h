// The product that gives weight gradients: the sum over all steps of one row times another.

constexpr int64_t DEPTH = 256;  // steps of k packed at once, or pairs: a panel stays in the second-level cache

// out[n][m] = sum over k of a[k][m] * b[k][n], for columns [n0, n1) of b and all M of a, with K rows given by pointers;
// sums[n], if asked for, is the sum over k of b[k][n]. Sums run over k in order: a chunk's result is the whole's.
template <class V, class Stored = typename V::type>
struct Transposed {
  using T = typename V::type;
  static constexpr bool narrow = !__is_same(Stored, T);
  static constexpr int C = 4, R = tile_rows<V>(C), PAIR = narrow ? 2 : 1;  // steps that stand together
  static constexpr int64_t W = C * V::lanes, STEPS = DEPTH * PAIR;
  int64_t M, n0, n1;

  int64_t blocks() const { return (M + R - 1) / R; }
  int64_t panels() const { return (n1 - n0 + W - 1) / W; }
  int64_t scratch() const { return DEPTH * W + blocks() * DEPTH * R + panels() * (blocks() * R * W + W); }

  void run(int64_t K, const Stored* const* a, const Stored* const* b, Stored* out, int64_t out_row, Stored* sums,
           T* memory) const {
    if (K <= 4) return run_few(K, a, b, out, out_row, sums);
    Stored* panel = (Stored*)memory;                          // [STEPS][W]
    Stored* left = (Stored*)(memory + DEPTH * W);             // [blocks][STEPS][R]
    T* result = memory + DEPTH * W + blocks() * DEPTH * R;    // [panels][blocks][R][W]
    T* totals = result + panels() * blocks() * R * W;         // [panels][W]
    const Stored* rows[R];
    for (int64_t k0 = 0; k0 < K; k0 += STEPS) {
      int64_t depth = K - k0 < STEPS ? K - k0 : STEPS;
      if (out)
        for (int64_t m = 0; m < M; m += R)
          pack_rows(depth, a + k0, m, M - m < R ? (int)(M - m) : R, left + m / R * STEPS * R);
      for (int64_t p = 0; p < panels(); p++) {
        pack(depth, b + k0, n0 + p * W, panel, totals + p * W, k0 > 0);
        for (int64_t m = 0; m < M && out; m += R) {
          int count = M - m < R ? (int)(M - m) : R;
          for (int r = 0; r < R; r++) rows[r] = left + m / R * STEPS * R + r * PAIR;
          multiply<V>(C, count, (depth + PAIR - 1) / PAIR * PAIR, rows, R, panel, W,
                      result + (p * blocks() * R + m) * W, k0 > 0);
        }
      }
    }
    for (int64_t p = 0; p < panels() && out; p++)
      for (int c = 0; c < C; c++) {
        int64_t n = n0 + p * W + c * V::lanes;
        if (n < n1) write(result + p * blocks() * R * W + c * V::lanes, n1 - n, out + n * out_row, out_row);
      }
    for (int64_t n = n0; n < n1 && sums; n++) sums[n] = totals[(n - n0) / W * W + (n - n0) % W];
  }

  // The same sums without packing.
  void run_few(int64_t K, const Stored* const* a, const Stored* const* b, Stored* out, int64_t out_row,
               Stored* sums) const {
    for (int64_t n = n0; n < n1; n++) {
      if (sums) {
        T sum = 0;
        for (int64_t k = 0; k < K; k++) sum += b[k][n];
        sums[n] = sum;
      }
      for (int64_t m = 0; m < M && out; m += V::lanes) {
        int lanes = M - m < V::lanes ? (int)(M - m) : V::lanes;
        V sum = splat<V>(0);
        for (int64_t k = 0; k < K; k++)
          sum = fma(splat<V>(b[k][n]), load<V>(a[k] + m, lanes), sum);
        store(sum, out + n * out_row + m, lanes);
      }
    }
  }

  // A column of vectors, [M][W], turned into rows of out; each row goes out in one run, as memory likes it.
  void write(const T* from, int64_t columns, Stored* out, int64_t out_row) const {
    constexpr int64_t RUN = 128;
    alignas(64) Stored turned[V::lanes * RUN];
    int count = columns < V::lanes ? (int)columns : V::lanes;
    for (int64_t m0 = 0; m0 < M; m0 += RUN) {
      int64_t length = M - m0 < RUN ? M - m0 : RUN;
      for (int64_t m = 0; m < length; m += V::lanes) {
        V rows[V::lanes];
        for (int l = 0; l < V::lanes; l++) rows[l] = m + l < length ? V::load(from + (m0 + m + l) * W) : splat<V>(0);
        transpose(rows);
        for (int l = 0; l < count; l++) store<true>(rows[l], turned + l * RUN + m, V::lanes);
      }
      for (int l = 0; l < count; l++)
        __builtin_memcpy(out + l * out_row + m0, turned + l * RUN, (size_t)length * sizeof(Stored));
    }
  }

  // `count` columns of a beside each other, or their pairs of steps.
  static void pack_rows(int64_t depth, const Stored* const* a, int64_t m, int count, Stored* to) {
    for (int64_t k = 0; k < depth; k += PAIR, to += PAIR * R)
      if constexpr (narrow) {
        V pair = pairs<V>(a[k] + m, k + 1 < depth ? a[k + 1] + m : nullptr, count);
        pair.store_first((T*)to, R);
      } else if (count == R) {
        __builtin_memcpy(to, a[k] + m, R * sizeof(T));
      } else {
        for (int r = 0; r < R; r++) to[r] = r < count ? a[k][m + r] : 0;
      }
  }

  void pack(int64_t depth, const Stored* const* b, int64_t n, Stored* panel, T* totals, bool add) const {
    V total[C];
    for (int c = 0; c < C; c++) total[c] = add ? V::load(totals + c * V::lanes) : splat<V>(0);
    for (int64_t k = 0; k < depth; k += PAIR) {
      for (int64_t i = k + 8 * PAIR; i < k + 9 * PAIR && i < depth; i++)  // of rows so far apart none is expected
        for (int64_t m = 0; m < W; m += 64 / (int64_t)sizeof(Stored)) __builtin_prefetch(b[i] + n + m);
      for (int c = 0; c < C; c++) {
        int64_t at = n + c * V::lanes, left = n1 - at;
        int lanes = left >= V::lanes ? V::lanes : left > 0 ? (int)left : 0;
        if constexpr (narrow) {
          const Stored* next = k + 1 < depth ? b[k + 1] + at : nullptr;
          pairs<V>(b[k] + at, next, lanes).store((T*)(panel + k * W) + c * V::lanes);
          total[c] = total[c] + load<V>(b[k] + at, lanes);
          if (next) total[c] = total[c] + load<V>(next, lanes);
        } else {
          V value = lanes ? load<V>(b[k] + at, lanes) : splat<V>(0);
          value.store(panel + k * W + c * V::lanes);
          total[c] = total[c] + value;
        }
      }
    }
    for (int c = 0; c < C; c++) total[c].store(totals + c * V::lanes);
  }
};
