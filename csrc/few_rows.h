// Products of few rows with weights as they lie, each read once: packing them would cost more than the product.

// sum[r] += the products of the lanes of x and of row r of w, for R rows.
template <int R, class V>
static TORCHRNN_INLINE void dot_group(V* sum, int64_t K, const typename V::type* w, int64_t row, const typename V::type* x) {
  V part[R];
  for (int r = 0; r < R; r++) part[r] = sum[r];
  int64_t k = 0;
  for (; k + V::lanes <= K; k += V::lanes) {
    V value = V::load(x + k);
    for (int r = 0; r < R; r++) {
      __builtin_prefetch(w + (R + r) * row + k);  // short rows escape the processor's own prefetching
      part[r] = fma(V::load(w + r * row + k), value, part[r]);
    }
  }
  if (k < K) {
    V value = V::load_first(x + k, (int)(K - k));
    for (int r = 0; r < R; r++) part[r] = fma(V::load_first(w + r * row + k, (int)(K - k)), value, part[r]);
  }
  for (int r = 0; r < R; r++) sum[r] = part[r];
}

// The products of one row x with `count` rows of w: for calls of so few rows that packing w would cost more than the
// product. Each row's sum is spread over the lanes of sum[l]; the order of summation is another than multiply's. The
// rows are read almost one after the other: all side by side, the second-level cache gives half as much.
template <class V>
static TORCHRNN_INLINE void dot_rows(V (&sum)[V::lanes], int count, int64_t K, const typename V::type* w, int64_t row,
                                     const typename V::type* x) {
  int l = 0;
  constexpr int R = V::lanes < 4 ? V::lanes : 4;
  for (; l + R <= count; l += R) dot_group<R>(sum + l, K, w + l * row, row, x);
  for (; l < count; l++) dot_group<1>(sum + l, K, w + l * row, row, x);
}

// Lane l of the result is the sum over the lanes of sum[l]: in each round, neighbours `half` apart become one.
template <class V>
static TORCHRNN_INLINE V sum_lanes(V (&sum)[V::lanes]) {
  constexpr int L = V::lanes;
#if defined(__GNUC__) && !defined(__clang__)
  typedef decltype(V{}.v < V{}.v) Index;
#pragma GCC unroll 8  // the indices are then constants
  for (int half = 1; half < L; half *= 2) {
    Index low, high;
#pragma GCC unroll 16
    for (int l = 0; l < L; l++) {
      low[l] = l & half ? L + l - half : l;
      high[l] = l & half ? L + l : l + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i += 2 * half) {
      V a = sum[i], b = sum[i + half], x, y;
      x.v = __builtin_shuffle(a.v, b.v, low);
      y.v = __builtin_shuffle(a.v, b.v, high);
      sum[i] = x + y;
    }
  }
  return sum[0];
#else
  transpose(sum);
  for (int half = L / 2; half > 0; half /= 2)
    for (int l = 0; l < half; l++) sum[l] = sum[l] + sum[l + half];
  return sum[0];
#endif
}

// Up to MOST rows of K numbers turned, [K][C][L]: a lane is a row. A weight, read as a number, meets them all. Each sum
// runs over k in order, so that it is multiply's to the bit.
template <class V>
struct Turned {
  using T = typename V::type;
  static constexpr int MOST = 4 * V::lanes;
  int64_t rows, K;
  int C;
  Buffer<T> columns, sums;

  // Whether it pays: packing a weight costs as much as about half a vector of rows, and more where what is packed no
  // longer fits into the caches.
  static bool takes(int64_t rows, int64_t bytes_packed) {
    int64_t padded = (rows + V::lanes - 1) / V::lanes * V::lanes;
    bool large = bytes_packed > 8 << 20;
    return rows <= MOST && (large ? rows > 4 : rows >= V::lanes * 3 / 4 && padded - rows <= V::lanes / 2);
  }

  Turned(int64_t rows, int64_t K)
      : rows(rows), K(K), C((int)((rows + V::lanes - 1) / V::lanes)), columns(K * C * V::lanes),
        sums(C * V::lanes * V::lanes) {}

  void fill(const T* const* a) const {
    for (int c = 0; c < C; c++) {
      int64_t first = c * V::lanes, left = rows - first;
      turn_rows<V>(a + first, left < V::lanes ? (int)left : V::lanes, K, columns + first, C * V::lanes, times_zero<V>);
    }
  }

  // to[r * row + n] = start[n] + sum over k of a[r][k] * w[n][k], for `units` n, a vector of them at most.
  void multiply(const T* w, int units, T* to, int64_t row, const T* start) const {
    const int most = tile_rows<V>(C);
    const T* from[8];
    for (int n = 0; n < units; n += most) {
      int count = units - n < most ? units - n : most;
      for (int i = 0; i < count; i++) from[i] = w + (n + i) * K;
      T* tile = sums + (int64_t)n * C * V::lanes;
      TORCHRNN_ISA::multiply<V>(C, count, K, from, 1, (const T*)columns, C * V::lanes, tile, false);
    }
    V bias = start ? load<V>(start, units) : splat<V>(0);
    for (int c = 0; c < C; c++) {
      V block[V::lanes];
      for (int l = 0; l < V::lanes; l++) block[l] = l < units ? V::load(sums + (l * C + c) * V::lanes) : splat<V>(0);
      transpose(block);
      for (int64_t l = 0, r = c * V::lanes; l < V::lanes && r < rows; l++, r++)
        store(start ? block[l] + bias : block[l], to + r * row, units);
    }
  }

  // The same for N units.
  void multiply_all(int64_t N, const T* w, T* to, int64_t row, const T* start) const {
    for (int64_t n = 0; n < N; n += V::lanes)
      multiply(w + n * K, N - n < V::lanes ? (int)(N - n) : V::lanes, to + n, row, start ? start + n : nullptr);
  }
};
