// The sweep forward: slabs of the x-part for some steps at once, then step by step; and a whole layer of it.

template <class Cell, class V, class Stored = typename V::type>
struct Forward : Sweep<Cell, V, Stored> {
  using Base = Sweep<Cell, V, Stored>;
  using typename Base::T;
  using Base::Base, Base::G, Base::S, Base::columns, Base::s, Base::d, Base::H, Base::out, Base::time,
      Base::output_before, Base::state_before, Base::running, Base::initial, Base::copy, Base::narrow;

  void run(const Chunk& own, const Matrix<V, Stored>& w_x, const Matrix<V, Stored>& w_h, const Matrix<V, Stored>& w_r,
           const T* zero, const T* bias, Profile* profile) const {
    int64_t B = own.end - own.begin;
    if (B <= 0) return;
    start(own);
    int64_t slab = B >= 96 ? 1 : (96 + B - 1) / B;
    if (slab > s.T) slab = s.T;
    Buffer<T> x_part(slab * B * G * H + V::lanes);
    Buffer<T*> pointers(4 * slab * B);
    Buffer<Stored> middle(d.w_hr && !d.unprojected ? B * H : 1);
    for (int64_t i = 0; i < s.T; i += slab) {
      int64_t last = i + slab < s.T ? i + slab : s.T, M = 0;
      const Stored** from = (const Stored**)(T**)pointers;
      T** to = pointers + slab * B;
      for (int64_t j = i; j < last; j++)
        for (int64_t r = 0, n = own.rows(s, time(j)); r < n; r++, M++) {
          from[M] = d.x.at(time(j), own.begin + r);
          to[M] = x_part + M * G * H;
        }
      if (w_x.packed) multiply_all<V>(M, w_x, from, to, bias, false);
      else x_part_turned(M, from, x_part, bias);
      if (profile) lap(*profile, X_PART);
      const T* part = x_part;
      for (int64_t j = i; j < last; j++) {
        int64_t n = own.rows(s, time(j));
        const T* product = j == 0 && from_zeros(own.begin, n) ? zero : nullptr;
        step(time(j), own.begin, n, part, w_h, product, w_r, (const Stored**)(pointers + 2 * slab * B), middle);
        part += n * G * H;
      }
      if (profile) lap(*profile, SWEEP_FORWARD);
    }
    finish(own);
    if (profile) lap(*profile, SWEEP_FORWARD);
  }

  void x_part_turned(int64_t rows, const Stored* const* x, T* x_part, const T* bias) const {
    if constexpr (!narrow) {
      Turned<V> turned(rows, s.I);
      turned.fill(x);
      turned.multiply_all(G * H, d.w_ih, x_part, G * H, bias);
    }
  }

  // One step of few rows, straight from the weights as they lie.
  void run_direct() const {
    start({0, s.B});
    alignas(64) T tile[G * V::lanes];
    Buffer<T> x_part(G * H);
    for (int64_t unit = 0; unit < H; unit += V::lanes) {
      int lanes = H - unit < V::lanes ? (int)(H - unit) : V::lanes;
      for (int64_t r = 0; r < s.B; r++) {  // the rows of the weights stay in the cache meanwhile
        const T *x = d.x.at(0, r), *h = output_before(0, r);
        for (int g = 0; g < G; g++) {
          int64_t n = g * H + unit;
          bool additive = Cell::h_column[g] == g;
          V sum[V::lanes], part = splat<V>(0);
          for (int l = 0; l < V::lanes; l++) sum[l] = splat<V>(0);
          dot_rows<V>(sum, lanes, s.I, d.w_ih + n * s.I, s.I, x);
          if (!additive) {
            part = sum_lanes(sum);
            for (int l = 0; l < V::lanes; l++) sum[l] = splat<V>(0);
          }
          dot_rows<V>(sum, lanes, out, d.w_hh + n * out, out, h);
          sum_lanes(sum).store(tile + g * V::lanes);
          if (d.b_ih) part = part + load<V>(d.b_ih + n, lanes);
          if (d.b_hh && additive) part = part + load<V>(d.b_hh + n, lanes);
          store(part, x_part + n, lanes);
        }
        units(0, r, unit, tile, V::lanes, x_part, h, nullptr);
      }
    }
    finish({0, s.B});
  }

  // One step of more rows, for units [begin, end): the rows turned, the weights as they lie.
  void run_turned(int64_t begin, int64_t end) const {
    constexpr int64_t W = G * V::lanes;
    Turned<V> x(s.B, s.I), h(s.B, out);
    Buffer<const T*> rows(2 * s.B);
    const T** previous = rows + s.B;
    for (int64_t r = 0; r < s.B; r++) rows[r] = d.x.at(0, r), previous[r] = output_before(0, r);
    x.fill(rows), h.fill(previous);
    Buffer<T> tiles(s.B * W), x_part(s.B * G * H);
    alignas(64) T bias[V::lanes];
    for (int64_t unit = begin; unit < end; unit += V::lanes) {
      int lanes = H - unit < V::lanes ? (int)(H - unit) : V::lanes;
      for (int g = 0; g < G; g++) {
        int64_t n = g * H + unit;
        bool additive = Cell::h_column[g] == g;
        if (d.b_ih) (load<V>(d.b_ih + n, lanes) + (additive ? load<V>(d.b_hh + n, lanes) : splat<V>(0))).store(bias);
        x.multiply(d.w_ih + n * s.I, lanes, x_part + n, G * H, d.b_ih ? bias : nullptr);
        h.multiply(d.w_hh + n * out, lanes, tiles + g * V::lanes, W, nullptr);
      }
      for (int64_t r = 0; r < s.B; r++) units(0, r, unit, tiles + r * W, V::lanes, x_part + r * G * H, previous[r], nullptr);
    }
  }

  void start(const Chunk& own) const {
    if constexpr (narrow) return this->widen(own.begin, own.end);
    for (int k = 1; k < S; k++)
      if (!d.sequence[k])
        for (int64_t j = own.begin * H; j < own.end * H; j++) d.final[k][j] = d.initial[k][j];
  }

  void finish(const Chunk& own) const {
    for (int64_t r = own.begin; r < own.end; r++) {
      int64_t length = s.length(r), t = d.reverse ? 0 : length - 1;
      const Stored* from = length ? d.y.at(t, r) : d.initial[0] + r * out;
      for (int64_t j = 0; j < out; j++) d.final[0][r * out + j] = from[j];
      for (int k = 1; k < S; k++)
        if (d.sequence[k]) copy(length ? d.sequence[k] + s.index(t, r) * H : initial(k) + r * H, d.final[k] + r * H, H);
        else if constexpr (narrow) copy(running(k) + r * H, d.final[k] + r * H, H);
    }
  }

  bool from_zeros(int64_t begin, int64_t rows) const {
    const Stored* h = d.initial[0] + begin * out;
    for (int64_t j = 0; j < rows * out; j++)
      if (h[j] != 0) return false;
    return true;
  }

  // `zero` are the products with weight_hh where all previous outputs are zero, otherwise null.
  void step(int64_t t, int64_t r0, int64_t rows, const T* x_part, const Matrix<V, Stored>& w_h, const T* zero,
            const Matrix<V, Stored>& w_r, const Stored** pointers, Stored* middle) const {
    const Panels<V, Stored>& panels = w_h.panels;
    const Stored** previous = pointers;
    Stored** projected = (Stored**)(pointers + rows);
    for (int64_t r = 0; r < rows; r++) previous[r] = output_before(t, r0 + r);
    alignas(64) T tile[(MAX_TILE + 1) * V::lanes];  // the last value's lanes may end behind the tile
    for (int64_t q = 0; q < panels.count(); q++) {
      int64_t p = t & 1 ? panels.count() - 1 - q : q;  // to and fro: the panels used last are still in the cache
      int vectors = panels.vectors(p), C = panels.columns(p), most = tile_rows<V>(C);
      int64_t apart = panels.apart(p);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        if (!zero) multiply<V>(C, count, out, previous + m, 1, w_h.at(p), w_h.step(p), tile, false);
        for (int r = 0; r < count; r++) {
          const T* products = zero ? zero + panels.first_column(p) * V::lanes : tile + r * C * V::lanes;
          for (int b = 0; b < vectors; b++)
            units(t, r0 + m + r, p * panels.width() + (int64_t)b * V::lanes, products + b * G * V::lanes, apart,
                  x_part + (m + r) * G * H, previous[m + r], middle + (m + r) * H);
        }
      }
    }
    if (!d.w_hr) return;
    for (int64_t r = 0; r < rows; r++) {
      previous[r] = d.unprojected ? d.unprojected + s.index(t, r0 + r) * H : middle + r * H;
      projected[r] = d.y.at(t, r0 + r);
    }
    multiply_all<V>(rows, w_r, previous, projected, nullptr, false);
  }

  // One vector of units of one row: the cell's function on the tile, whose gates are `apart` numbers from each other.
  void units(int64_t t, int64_t r, int64_t unit, const T* tile, int64_t apart, const T* x_part, const Stored* previous,
             Stored* middle) const {
    if (__builtin_expect(d.open, false)) units_open(t, r, unit, tile, apart, x_part, previous, middle);
    else if (H - unit >= V::lanes) units_of<Cell, true>(t, r, unit, V::lanes, tile, V::lanes, x_part, previous, middle);
    else units_of<Cell, false>(t, r, unit, (int)(H - unit), tile, apart, x_part, previous, middle);
  }
  __attribute__((noinline)) void units_open(int64_t t, int64_t r, int64_t unit, const T* tile, int64_t apart,
                                            const T* x_part, const Stored* previous, Stored* middle) const {
    using Open = typename Cell::open;
    if (H - unit >= V::lanes) units_of<Open, true>(t, r, unit, V::lanes, tile, V::lanes, x_part, previous, middle);
    else units_of<Open, false>(t, r, unit, (int)(H - unit), tile, apart, x_part, previous, middle);
  }
  template <class Functor, bool full>
  TORCHRNN_INLINE void units_of(int64_t t, int64_t r, int64_t unit, int lanes, const T* tile, int64_t apart,
                                const T* x_part, const Stored* previous, Stored* middle) const {
    constexpr int saved = Functor::saved;
    V a[columns], before[S], after[S], keep[saved > 0 ? saved : 1];
    for (int g = 0; g < G; g++) {
      V x = load<V, full>(x_part + g * H + unit, lanes), h = V::load(tile + g * apart);
      int column = Cell::h_column[g];
      if (column == g) {
        a[g] = x + h;
      } else {
        a[g] = x;
        a[column] = d.b_hh ? h + load<V, full>(d.b_hh + g * H + unit, lanes) : h;
      }
    }
    for (int k = 0; k < S; k++)
      if constexpr (narrow) {
        if (Cell::reads[k]) before[k] = load<V, full>((k ? state_before(k, t, r) : running(0) + r * H) + unit, lanes);
      } else if (Cell::reads[k]) {
        before[k] = load<V, full>((k ? state_before(k, t, r) : previous) + unit, lanes);
      }
    if constexpr (__is_same(Functor, Cell)) Functor::forward(a, before, after, keep);
    else Functor::forward(a, before, after, keep, d.options);
    int64_t n = s.index(t, r);
    Stored* output = !d.w_hr ? d.y.at(t, r) : d.unprojected ? d.unprojected + n * H : middle;
    store<full>(after[0], output + unit, lanes);
    if constexpr (narrow && Cell::reads[0]) store<full>(after[0], running(0) + r * H + unit, lanes);
    for (int k = 1; k < S; k++)
      store<full>(after[k], (d.sequence[k] ? d.sequence[k] + n * H : running(k) + r * H) + unit, lanes);
    if (d.keep)
      for (int j = 0; j < saved; j++) store<full>(keep[j], d.keep + (n * saved + j) * H + unit, lanes);
  }
};

// The weights of one direction as the sweep multiplies with them, in one block of memory: packed for a call, or once
// for many steps. The biases are summed where the parts are.
template <class Cell, class V, class Stored = typename V::type>
struct PackedWeights {
  using T = typename V::type;
  static constexpr int G = Cell::gates;
  Matrix<V, Stored> x, h, r;
  T *zero, *bias, *b_hh;  // zero: the products of h with zeros
  int64_t size;

  PackedWeights(const Shape& s, T* memory)
      : x{{G * s.H, 1, s.I}}, h{{s.H, G, s.P ? s.P : s.H}}, r{{s.P, 1, s.H}} {
    x.packed = (Stored*)memory, h.packed = x.packed + x.panels.size(), r.packed = h.packed + h.panels.size();
    zero = (T*)(r.packed + r.panels.size());
    bias = zero + (h.panels.columns() + 1) * V::lanes;
    b_hh = bias + G * s.H + V::lanes;
    size = b_hh + G * s.H + V::lanes - memory;
  }

  void fill(const Shape& s, const Direction<T, Stored>& d, bool turned = false) {
    int64_t out = s.P ? s.P : s.H;
    if (turned) x.packed = nullptr;
    else x.pack_all(d.w_ih, 0, s.I, 1);
    h.pack_all(d.w_hh, s.H * out, out, 1, zero);
    if (d.w_hr) r.pack_all(d.w_hr, 0, s.H, 1);
    if (!d.b_ih) return;
    for (int g = 0; g < G; g++)
      for (int64_t j = g * s.H; j < (g + 1) * s.H; j++) {
        bias[j] = d.b_ih[j] + (Cell::h_column[g] == g ? T(d.b_hh[j]) : 0);
        b_hh[j] = d.b_hh[j];
      }
  }
};

// One step of more rows than run_direct's: threads share the units.
template <class Cell, class V>
static void forward_turned(const Layer<typename V::type>& layer) {
  const Shape& s = layer.shape;
  int64_t vectors = (s.H + V::lanes - 1) / V::lanes, work = s.B * Cell::gates * s.H * (s.I + s.H);
  int64_t parts = row_chunks<V>(s, layer.directions, layer.parallel, work);
  if (parts > vectors) parts = vectors;
  for (int i = 0; i < layer.directions; i++) Forward<Cell, V>(s, layer.direction[i]).start({0, s.B});
  in_parallel(layer.parallel, layer.directions * parts, [&](int64_t i) {
    int64_t part = i % parts, end = vectors * (part + 1) / parts * V::lanes;
    Forward<Cell, V>(s, layer.direction[i / parts]).run_turned(vectors * part / parts * V::lanes, end < s.H ? end : s.H);
  });
  for (int i = 0; i < layer.directions; i++) Forward<Cell, V>(s, layer.direction[i]).finish({0, s.B});
}

template <class Cell, class V, class Stored = typename V::type>
static void layer_forward(const Layer<typename V::type, Stored>& layer) {
  using T = typename V::type;
  using Weights = PackedWeights<Cell, V, Stored>;
  constexpr bool narrow = !__is_same(Stored, T);
  const Shape& s = layer.shape;
  Profile* profile = layer.profile;
  if (profile) begin(*profile);
  const int64_t size = Weights(s, nullptr).size, bytes = size * (int64_t)sizeof(T);
  if constexpr (!narrow) {
    if (s.T == 1 && s.B <= 4 && !s.P && !s.running && !layer.packed) {  // a packed step keeps to the sums of a sequence
      for (int i = 0; i < layer.directions; i++) Forward<Cell, V>(s, layer.direction[i]).run_direct();
      if (profile) lap(*profile, SWEEP_FORWARD);
      return;
    }
    if (s.T == 1 && Turned<V>::takes(s.B, bytes) && !s.P && !s.running && !layer.packed) {
      forward_turned<Cell, V>(layer);
      if (profile) lap(*profile, SWEEP_FORWARD);
      return;
    }
  }
  int64_t states = narrow ? Cell::states * s.B * s.H : 0;
  Buffer<T> scratch(layer.packed ? 1 : (size + states) * layer.directions);
  T* memory = layer.packed ? layer.packed : scratch;
  Weights weights[2] = {{s, memory}, {s, memory + size}};
  int64_t chunks = row_chunks<V>(s, layer.directions, layer.parallel, s.total() * Cell::gates * s.H * (s.I + (s.P ? s.P : s.H)));
  bool turned = !narrow && chunks == 1 && Turned<V>::takes(s.total(), bytes);
  if (!layer.packed)
    in_parallel(layer.parallel, layer.directions, [&](int64_t i) { weights[i].fill(s, layer.direction[i], turned); });
  if (profile) lap(*profile, PACKING);
  in_parallel(layer.parallel, layer.directions * chunks, [&](int64_t i) {
    int64_t of = i / chunks;
    const Weights& w = weights[of];
    Direction<T, Stored> d = layer.direction[of];
    if constexpr (narrow) {
      for (int k = 0; k < Cell::states; k++)
        d.running[k] = memory + size * layer.directions + (of * Cell::states + k) * s.B * s.H;
    } else if (layer.packed && d.b_hh) {
      d.b_hh = w.b_hh;
    }
    Forward<Cell, V, Stored>(s, d).run(chunk(s, i % chunks, chunks), w.x, w.h, w.r, w.zero, d.b_hh ? w.bias : nullptr, profile);
  });
}

// Packs the weights of a layer's one direction to where layer.packed says; gives the size of that in any case.
template <class Cell, class V>
static int64_t layer_pack(const Layer<typename V::type>& layer) {
  PackedWeights<Cell, V> weights(layer.shape, layer.packed);
  if (layer.packed) weights.fill(layer.shape, layer.direction[0]);
  return weights.size;
}
