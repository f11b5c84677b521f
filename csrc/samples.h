// The gradients of the weights for each of several samples, from one sweep: rows of all samples stand side by side.

// out[n][m] = sum over k of b[k][n] * a[k][m], as Transposed and to the bit, for few k and many results: the rows of a
// tile are those of `out`, so that each is written once, as it is, and past the caches that could not hold them all.
// Few are as many as a packing of Transposed holds, or four times that of results that would leave the caches
// between two packings.
template <class Cell, class V, class Stored>
struct SampleGradients {
  using T = typename V::type;
  using Product = Transposed<V, Stored>;
  static constexpr int G = Cell::gates, columns = Cell::columns, C = Product::C, R = Product::R, PAIR = Product::PAIR;
  static constexpr int64_t W = Product::W;
  int64_t K, H;

  // Whether K steps are few, and the rows of `out` as long as a vector.
  bool takes(int64_t M) const {
    bool large = G * H * M * (int64_t)sizeof(T) > 6 << 20;
    return K > 4 && K <= (large ? 4 : 1) * Product::STEPS && M >= V::lanes;
  }

  int64_t padded() const { return (K + PAIR - 1) / PAIR * PAIR; }
  int64_t blocks() const { return (H + R - 1) / R; }  // of the units of one column
  int64_t left_size() const { return columns * blocks() * padded() * R; }
  int64_t panel_size() const { return padded() * W + W * (int64_t)(sizeof(T) / sizeof(Stored)); }  // and its sums

  // Rows b to blocks [column][block][K][R], and their sums over k; row after row, for they lie far apart.
  void pack(const Stored* const* b, Stored* left, T* sums) const {
    for (int64_t j = 0; j < columns * H; j++) sums[j] = 0;
    for (int64_t k = 0; k < K; k += PAIR) {
      Stored* to = left + k * R;
      for (int64_t column = 0; column < columns; column++)
        for (int64_t m = 0; m < H; m += R, to += padded() * R)
          Product::pack_rows(K - k < PAIR ? 1 : PAIR, b + k, column * H + m, H - m < R ? (int)(H - m) : R, to);
      for (int64_t i = k; i < k + PAIR && i < K; i++)
        for (int64_t j = 0; j < columns * H; j += V::lanes) {
          int lanes = columns * H - j < V::lanes ? (int)(columns * H - j) : V::lanes;
          store(load<V>(sums + j, lanes) + load<V>(b[i] + j, lanes), sums + j, lanes);
        }
    }
  }

  // The product and the sums for all gates, gate g from column at(g); `panel` is scratch.
  template <class At>
  void run(int64_t M, const Stored* const* a, const Stored* left, const T* sums, const At& at, Stored* out,
           Stored* bias, Stored* panel, bool past) const {
    for (int g = 0; bias && g < G; g++)
      for (int64_t j = 0; j < H; j++) bias[g * H + j] = sums[at(g) * H + j];
    if (!out) return;
    Product right{0, 0, M};
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t m = 0; m < M; m += W) {
      right.pack(K, a, m, panel, (T*)(panel + padded() * W), false);
      int vectors = M - m < W ? (int)((M - m + V::lanes - 1) / V::lanes) : C;
      for (int g = 0; g < G; g++)
        for (int64_t n = 0; n < H; n += R) {
          const Stored* block = left + (at(g) * blocks() + n / R) * padded() * R;
          const Stored* rows[R];
          for (int r = 0; r < R; r++) rows[r] = block + r * PAIR;
          int count = H - n < R ? (int)(H - n) : R;
          multiply<V>(vectors, count, padded(), rows, R, panel, W, tile, false);
          for (int r = 0; r < count; r++) write(tile + r * vectors * V::lanes, vectors, M - m, out + (g * H + n + r) * M + m, past);
        }
    }
  }

  static void write(const T* from, int vectors, int64_t left, Stored* to, bool past) {
    if constexpr (__is_same(Stored, T))
      if (past && left >= vectors * V::lanes) {
        for (int c = 0; c < vectors; c++) store_past(V::load(from + c * V::lanes), to + c * V::lanes);
        return;
      }
    for (int c = 0; c < vectors; c++) {
      V value = V::load(from + c * V::lanes);
      int64_t lanes = left - c * V::lanes;
      store(value, to + c * V::lanes, lanes < V::lanes ? (int)lanes : V::lanes);
    }
  }
};

// Step n of all rows belongs to sample n % samples. Part i of `of` has its own samples; each gradient is (samples, …).
template <class Cell, class V, class Stored>
static void sample_gradients(const WeightGradients<Cell, V, Stored>& all, int64_t samples, int64_t i, int64_t of) {
  using T = typename V::type;
  using Few = SampleGradients<Cell, V, Stored>;
  const int64_t K = all.N / samples, H = all.H, out = all.out, I = all.s.I, P = all.s.P, width = Few::columns * H;
  constexpr int G = Cell::gates;
  Direction<T, Stored> d = all.d;
  const Few few{K, H};
  const bool few_x = few.takes(I), few_h = few.takes(out), some = few_x || few_h;
  const bool apart = samples > 1 && !(few_x && few_h);  // rows lie far apart, and none is fetched ahead
  Buffer<const Stored*> rows(3 * K);
  Buffer<Stored> left(some ? few.left_size() : 0), panel(some ? few.panel_size() : 0);
  Buffer<T> sums(some ? width : 0);
  Buffer<Stored> own_da(apart ? K * width : 0);
  const bool past = samples * G * H * (I + out) * (int64_t)sizeof(Stored) > 16 << 20;
  WeightGradients<Cell, V, Stored> one{all.s, d, K, H, out, rows, rows + K, rows + 2 * K};
  for (int64_t v = samples * i / of; v < samples * (i + 1) / of; v++) {
    auto own = [v](Stored* first, int64_t size) { return first ? first + v * size : nullptr; };
    d.dw_ih = own(all.d.dw_ih, G * H * I), d.dw_hh = own(all.d.dw_hh, G * H * out);
    d.db_ih = own(all.d.db_ih, G * H), d.db_hh = own(all.d.db_hh, G * H);
    for (int64_t k = 0, n = v; k < K; k++, n += samples) one.x[k] = all.x[n], one.h[k] = all.h[n], one.da[k] = all.da[n];
    if (some) few.pack(one.da, left, sums);
    if (few_x) few.run(I, one.x, left, sums, [](int g) { return g; }, d.dw_ih, d.db_ih, panel, past);
    if (few_h) few.run(out, one.h, left, sums, [](int g) { return Cell::h_column[g]; }, d.dw_hh, d.db_hh, panel, past);
    if (few_x) d.dw_ih = d.db_ih = nullptr;  // done
    if (few_h) d.dw_hh = d.db_hh = nullptr;
    for (int64_t k = 0; k < K && apart; k++) {  // together
      __builtin_memcpy(own_da + k * width, one.da[k], (size_t)width * sizeof(Stored));
      one.da[k] = own_da + k * width;
    }
    one.part(0, 1);
    if (!d.w_hr || !all.d.dw_hr) continue;
    Transposed<V, Stored> product{H, 0, P};
    Buffer<T> memory(product.scratch());
    for (int64_t k = 0, n = v; k < K; k++, n += samples) one.x[k] = d.unprojected + n * H, one.h[k] = d.dprojected + n * out;
    product.run(K, one.x, one.h, own(all.d.dw_hr, P * H), H, nullptr, memory);
  }
  if (past) after_past();
}
