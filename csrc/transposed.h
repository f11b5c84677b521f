// The product that gives weight gradients: the sum over all steps of one row times another.

constexpr int64_t DEPTH = 256;  // steps of k packed at once, so that a panel stays in the second-level cache

// out[n][m] = sum over k of a[k][m] * b[k][n], for columns [n0, n1) of b and all M of a, with K rows given by pointers;
// sums[n], if asked for, is the sum over k of b[k][n]. Sums run over k in order: a chunk's result is the whole's.
template <class V>
struct Transposed {
  using T = typename V::type;
  static constexpr int C = 4, R = tile_rows<V>(C);
  static constexpr int64_t W = C * V::lanes;
  int64_t M, n0, n1;

  int64_t blocks() const { return (M + R - 1) / R; }
  int64_t panels() const { return (n1 - n0 + W - 1) / W; }
  int64_t scratch() const { return DEPTH * W + blocks() * DEPTH * R + panels() * (blocks() * R * W + W); }

  void run(int64_t K, const T* const* a, const T* const* b, T* out, int64_t out_row, T* sums, T* memory) const {
    if (K <= 4) return run_few(K, a, b, out, out_row, sums);
    T* panel = memory;                                // [DEPTH][W]
    T* left = panel + DEPTH * W;                      // [blocks][DEPTH][R]
    T* result = left + blocks() * DEPTH * R;          // [panels][blocks][R][W]
    T* totals = result + panels() * blocks() * R * W;  // [panels][W]
    const T* rows[R];
    for (int64_t k0 = 0; k0 < K; k0 += DEPTH) {
      int64_t depth = K - k0 < DEPTH ? K - k0 : DEPTH;
      if (out)
        for (int64_t m = 0; m < M; m += R)
          for (int64_t k = 0; k < depth; k++) {
            T* to = left + (m / R * DEPTH + k) * R;
            if (m + R <= M) __builtin_memcpy(to, a[k0 + k] + m, R * sizeof(T));
            else for (int r = 0; r < R; r++) to[r] = m + r < M ? a[k0 + k][m + r] : 0;
          }
      for (int64_t p = 0; p < panels(); p++) {
        pack(depth, b + k0, n0 + p * W, panel, totals + p * W, k0 > 0);
        for (int64_t m = 0; m < M && out; m += R) {
          int count = M - m < R ? (int)(M - m) : R;
          for (int r = 0; r < R; r++) rows[r] = left + m / R * DEPTH * R + r;
            multiply<V>(C, count, depth, rows, R, panel, W, result + (p * blocks() * R + m) * W, k0 > 0);
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
  void run_few(int64_t K, const T* const* a, const T* const* b, T* out, int64_t out_row, T* sums) const {
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
          sum = fma(splat<V>(b[k][n]), lanes == V::lanes ? V::load(a[k] + m) : V::load_first(a[k] + m, lanes), sum);
        if (lanes == V::lanes) sum.store(out + n * out_row + m);
        else sum.store_first(out + n * out_row + m, lanes);
      }
    }
  }

  // A column of vectors, [M][W], turned into rows of out.
  void write(const T* from, int64_t columns, T* out, int64_t out_row) const {
    int count = columns < V::lanes ? (int)columns : V::lanes;
    for (int64_t m = 0; m < M; m += V::lanes) {
      int64_t left = M - m;
      V rows[V::lanes];
      for (int l = 0; l < V::lanes; l++) rows[l] = l < left ? V::load(from + (m + l) * W) : splat<V>(0);
      transpose(rows);
      for (int l = 0; l < count; l++) {
        if (left >= V::lanes) rows[l].store(out + l * out_row + m);
        else rows[l].store_first(out + l * out_row + m, (int)left);
      }
    }
  }

  void pack(int64_t depth, const T* const* b, int64_t n, T* panel, T* totals, bool add) const {
    V total[C];
    for (int c = 0; c < C; c++) total[c] = add ? V::load(totals + c * V::lanes) : splat<V>(0);
    for (int64_t k = 0; k < depth; k++)
      for (int c = 0; c < C; c++) {
        int64_t lanes = n1 - n - c * V::lanes;
        V value = splat<V>(0);
        if (lanes >= V::lanes) value = V::load(b[k] + n + c * V::lanes);
        else if (lanes > 0) value = V::load_first(b[k] + n + c * V::lanes, (int)lanes);
        value.store(panel + k * W + c * V::lanes);
        total[c] = total[c] + value;
      }
    for (int c = 0; c < C; c++) total[c].store(totals + c * V::lanes);
  }
};
