// Small matrix products on packed panels: the one micro-kernel of the library, packing, and the product of many rows.
//
// A panel holds C vectors of L numbers for each k: [k][C][L]. The micro-kernel multiplies R rows, given by pointers,
// with one panel and leaves a tile [R][C][L]. Every row is summed over k in the same order whatever R is, so that a row's
// result does not depend on the rows beside it.

// Rows that stay in registers beside a panel of C vectors.
template <class V>
constexpr int tile_rows(int C) {
  int registers = TORCHRNN_VECTOR_BYTES == 64 ? 24 : 12;
  int rows = registers / C;
  return rows < 1 ? 1 : rows > 8 ? 8 : rows;
}

constexpr int MAX_VECTORS = 8;  // vectors of a panel
constexpr int MAX_TILE = 24;    // vectors of a tile

template <class V, int R, int C, bool add>
static void multiply_tile(int64_t K, const typename V::type* const* a, int64_t stride, const typename V::type* w,
                          int64_t step, typename V::type* tile) {
  using T = typename V::type;
  V sum[R][C];
#pragma GCC unroll 8  // or tiles of few vectors stay in memory
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
      if constexpr (add) sum[r][c] = V::load(tile + (r * C + c) * V::lanes);
      else sum[r][c] = splat<V>(0);
  const T* row[R];
  for (int r = 0; r < R; r++) row[r] = a[r];
  for (int64_t k = 0, at = 0; k < K; k++, at += stride, w += step) {
    V b[C];
    for (int c = 0; c < C; c++) b[c] = V::load(w + c * V::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      V x = splat<V>(row[r][at]);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) sum[r][c] = fma(x, b[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) sum[r][c].store(tile + (r * C + c) * V::lanes);
}

template <class V, int C, int R, class Stored>
static void multiply_rows(int rows, int64_t K, const Stored* const* a, int64_t stride, const Stored* w, int64_t step,
                          typename V::type* tile, bool add) {
  if constexpr (R > 1)
    if (rows < R) return multiply_rows<V, C, R - 1>(rows, K, a, stride, w, step, tile, add);
  if (add) multiply_tile<V, R, C, true>(K, a, stride, w, step, tile);
  else multiply_tile<V, R, C, false>(K, a, stride, w, step, tile);
}

// tile[rows][C][L] = (add ? tile : 0) + sum over k of a[r][k * stride] * w[k * step]; 1 <= rows <= tile_rows<V>(C).
// In a panel the step is C * L. Of bfloat16 a[r] and w hold pairs, see narrow.h.
template <class V, class Stored>
static void multiply(int C, int rows, int64_t K, const Stored* const* a, int64_t stride, const Stored* w, int64_t step,
                     typename V::type* tile, bool add) {
#define TORCHRNN_CASE(c) \
  case c: return multiply_rows<V, c, tile_rows<V>(c)>(rows, K, a, stride, w, step, tile, add);
  switch (C) {
    TORCHRNN_CASE(1)
    TORCHRNN_CASE(2)
    TORCHRNN_CASE(3)
    TORCHRNN_CASE(4)
    TORCHRNN_CASE(5)
    TORCHRNN_CASE(6)
    TORCHRNN_CASE(7)
    TORCHRNN_CASE(8)
  }
#undef TORCHRNN_CASE
}

// One column of a panel: `units` numbers for each k, given by where they begin and `depth` apart, either with depth 1 or
// side by side. Gives the sum over k of what stands there times zero: zero, or NaN where one is not finite.
template <class V>
static V pack_column(typename V::type* out, int64_t step, const typename V::type* const* unit, int units, int64_t K,
                     int64_t depth) {
  if (depth == 1) return turn_rows<V>(unit, units, K, out, step, times_zero<V>);
  V sum = splat<V>(0);
  for (int64_t k = 0; k < K; k++) {
    V row = load<V>(unit[0] + k * depth, units);
    row.store(out + k * step);
    sum = times_zero(row, sum);
  }
  return sum;
}

// How U units of G values each are cut into panels: `blocks` vectors of units side by side while they last. Of less than
// a vector of units the values follow each other without a gap. Where pairs of k are packed, `parts` runs of K may each
// fill up their last pair.
template <class V, class Stored = typename V::type>
struct Panels {
  static constexpr bool narrow = !__is_same(Stored, typename V::type);
  int64_t units;
  int G;
  int64_t K;
  int parts;
  int blocks;  // vectors of units in a full panel

  Panels(int64_t units, int G, int64_t K, int parts = 1)
      : units(units), G(G), K(K), parts(parts), blocks(G >= 3 ? 1 : G == 2 ? 2 : 4) {}

  int64_t padded() const { return narrow ? K + (K & 1) : K; }
  int64_t depth() const { return padded() * parts; }

  int64_t width() const { return (int64_t)blocks * V::lanes; }
  int64_t count() const { return (units + width() - 1) / width(); }
  // vectors of units in panel p
  int vectors(int64_t p) const {
    int64_t left = (units - p * width() + V::lanes - 1) / V::lanes;
    return left < blocks ? (int)left : blocks;
  }
  // numbers from one value of a unit to the next, and vectors of all values
  int64_t apart(int64_t p) const {
    int64_t left = units - p * width();
    return blocks == 1 && left < V::lanes ? left : V::lanes;
  }
  int columns(int64_t p) const { return (int)((vectors(p) * G * apart(p) + V::lanes - 1) / V::lanes); }
  int64_t first_column(int64_t p) const { return p * blocks * G; }  // panels before the last are full
  int64_t columns() const { return count() ? first_column(count() - 1) + columns(count() - 1) : 0; }
  int64_t offset(int64_t p) const { return first_column(p) * V::lanes * depth(); }
  int64_t size() const { return columns() * V::lanes * depth(); }

  // Pack panel p of w, where value (k, gate g, unit u) stands at w[g * gate + u * unit + k * by], `unit` or `by` is 1.
  // `zero`, if asked for, are the products with a row of zeros.
  void pack(int64_t p, Stored* to, const Stored* w, int64_t gate, int64_t unit, int64_t by,
            typename V::type* zero = nullptr) const {
    const int C = columns(p);
    const int64_t first = p * width(), left = units - first, each = apart(p), step = (int64_t)C * V::lanes;
    int64_t g = 0, u = 0, begin = 0, end = each;  // the value and the unit whose turn it is, of those side by side
    for (int c = 0; c < C; c++) {
      const Stored* from[V::lanes];
      int count = 0;
      for (int l = 0; l < V::lanes; l++) {
        if (u < left) from[count++] = w + g * gate + (first + u) * unit;
        if (++u < end) continue;
        if (++g < G) u = begin;
        else g = 0, begin = end, end += each;
      }
      for (int i = 0; i < parts; i++) {
        Stored* column = to + i * padded() * step + c * V::lanes * (narrow ? 2 : 1);
        V sum = pack_column<V>(column, step, from, count, K, by);
        if (zero) sum.store(zero + c * V::lanes);
        for (int l = 0; l < count; l++) from[l] += K * by;
      }
    }
  }
};

// A matrix as the right-hand side of products: packed, or with full panels read as they lie.
template <class V, class Stored = typename V::type>
struct Matrix {
  Panels<V, Stored> panels;
  Stored* packed = nullptr;
  const Stored* raw = nullptr;  // where it serves unpacked
  int64_t depth = 0;

  const Stored* at(int64_t p) const { return whole(p) ? raw + p * panels.width() : packed + panels.offset(p); }
  int64_t step(int64_t p) const { return whole(p) ? depth : (int64_t)panels.columns(p) * V::lanes; }
  bool whole(int64_t p) const { return raw && (p + 1) * panels.width() <= panels.units; }

  // As Panels::pack. Where units are neighbours already, packing costs more than it saves for few rows, unless they come
  // in many products.
  void pack(const Stored* w, int64_t gate, int64_t unit, int64_t by, int64_t rows, int64_t products) {
    bool few = rows <= 8 || (rows <= 64 && products <= 4);
    if (few && unit == 1 && panels.G == 1 && !panels.narrow) raw = w, depth = by;
    for (int64_t p = 0; p < panels.count(); p++)
      if (!whole(p)) panels.pack(p, packed + panels.offset(p), w, gate, unit, by);
  }

  // The same without a look at `w` later: for what is kept, or packed through a copy of this.
  void pack_all(const Stored* w, int64_t gate, int64_t unit, int64_t by, typename V::type* zero = nullptr) const {
    for (int64_t p = 0; p < panels.count(); p++)
      panels.pack(p, packed + panels.offset(p), w, gate, unit, by, zero ? zero + panels.first_column(p) * V::lanes : nullptr);
  }
};

// out[m][n] = start[n] + (add ? out[m][n] : 0) + sum over k of a[m][k] * w(k, n), for M rows given by pointers.
template <class V, class Stored, class Out>
static void multiply_all(int64_t M, const Matrix<V, Stored>& w, const Stored* const* a, Out* const* out,
                         const typename V::type* start, bool add) {
  using T = typename V::type;
  const Panels<V, Stored>& panels = w.panels;
  alignas(64) T tile[MAX_TILE * V::lanes];
  for (int64_t p = 0; p < panels.count(); p++) {
    int C = panels.vectors(p), most = tile_rows<V>(C);
    int64_t first = p * panels.width();
    for (int64_t m = 0; m < M; m += most) {
      int rows = M - m < most ? (int)(M - m) : most;
      multiply<V>(C, rows, panels.K, a + m, 1, w.at(p), w.step(p), tile, false);
      for (int i = 1; i < panels.parts; i++) {
        const Stored* part[tile_rows<V>(1)];
        for (int r = 0; r < rows; r++) part[r] = a[m + r] + i * panels.K;
        multiply<V>(C, rows, panels.K, part, 1, w.at(p) + i * panels.padded() * w.step(p), w.step(p), tile, true);
      }
      for (int r = 0; r < rows; r++)
        for (int c = 0; c < C; c++) {
          int64_t n = first + (int64_t)c * V::lanes, left = panels.units - n;
          V value = V::load(tile + (r * C + c) * V::lanes);
          Out* to = out[m + r] + n;
          if (left >= V::lanes) {
            if (start) value = value + load<V, true>(start + n, V::lanes);
            if (add) value = value + load<V, true>(to, V::lanes);
            store<true>(value, to, V::lanes);
          } else {
            if (start) value = value + load<V>(start + n, (int)left);
            if (add) value = value + load<V>(to, (int)left);
            store(value, to, (int)left);
          }
        }
    }
  }
}
