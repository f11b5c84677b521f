// The sweep backward, the gradients of the weights after it, and a whole layer of both.

template <class Cell, class V, class Stored = typename V::type>
struct Backward : Sweep<Cell, V, Stored> {
  using Base = Sweep<Cell, V, Stored>;
  using typename Base::T;
  using Base::Base, Base::G, Base::S, Base::columns, Base::s, Base::d, Base::H, Base::out, Base::time,
      Base::after, Base::ends, Base::output_before, Base::state_before, Base::run_of,
      Base::copy, Base::narrow;

  void run(const Chunk& own, const Matrix<V, Stored>& w_h, const Matrix<V, Stored>& w_r, T* const* carry) const {
    int64_t B = own.end - own.begin;
    if (B <= 0) return;
    if constexpr (narrow) this->widen(own.begin, own.end);
    Buffer<const Stored*> from(B);
    Buffer<Stored*> to(B);
    for (int64_t i = s.T - 1; i >= 0; i--) {
      int64_t t = time(i), rows = own.rows(s, t), going = 0;
      while (going < rows && !ends(t, own.begin + going)) going++;  // these have a next step
      if (d.w_hr) {
        project_back(t, own.begin, rows, going, w_h, from, to);
        for (int64_t r = 0; r < rows; r++) from[r] = d.dprojected + s.index(t, own.begin + r) * out;
        step_back(t, own.begin, rows, rows, w_r, from, carry);
      } else {
        next_gradients(t, own.begin, going, from);
        step_back(t, own.begin, rows, going, w_h, from, carry);
      }
    }
    if (d.dinitial[0]) initial_back(own, w_h, from, to, carry);
    if constexpr (narrow)
      for (int k = 1; k < S; k++)
        if (d.dinitial[k]) copy(carry[k] + own.begin * H, d.dinitial[k] + own.begin * H, B * H);
  }

  void next_gradients(int64_t t, int64_t r0, int64_t rows, const Stored** to) const {
    for (int64_t r = 0; r < rows; r++) to[r] = d.da + s.index(after(t), r0 + r) * columns * H;
  }

  // tile = (gradients of the h-parts of `rows`) · weight_hh, run by run of neighbouring columns.
  void through_hidden(int C, int rows, const Stored* const* gradients, const Matrix<V, Stored>& weights, int64_t p,
                      T* tile) const {
    const Stored *at[8], *w = weights.at(p);
    int64_t step = weights.step(p), one = narrow ? H + (H & 1) : H;
    bool apart = narrow && weights.panels.parts > 1;
    for (int g = 0, run; g < G; g += run) {
      run = apart ? 1 : run_of(g);
      for (int r = 0; r < rows; r++) at[r] = gradients[r] + Cell::h_column[g] * H;
      multiply<V>(C, rows, run * H, at, 1, w + (int64_t)g * one * step, step, tile, g > 0);
    }
  }

  // Gradients of the projected outputs, (N, P): from above, and through weight_hh from the next step.
  void project_back(int64_t t, int64_t r0, int64_t rows, int64_t going, const Matrix<V, Stored>& w_h,
                    const Stored** from, Stored** to) const {
    for (int64_t r = 0; r < rows; r++) {
      to[r] = d.dprojected + s.index(t, r0 + r) * out;
      const Stored* above = d.dy.base ? d.dy.at(t, r0 + r) : nullptr;
      const Stored* last = r >= going && d.dfinal[0] ? d.dfinal[0] + (r0 + r) * out : nullptr;
      for (int64_t j = 0; j < out; j++) to[r][j] = (above ? T(above[j]) : 0) + (last ? T(last[j]) : 0);
    }
    next_gradients(t, r0, going, from);
    hidden_rows(going, from, w_h, to);
  }

  // to[r] += gradients[r] · weight_hh
  template <class To>
  void hidden_rows(int64_t rows, const Stored* const* gradients, const Matrix<V, Stored>& w_h, To* const* to) const {
    const Panels<V, Stored>& panels = w_h.panels;
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t p = 0; p < panels.count(); p++) {
      int C = panels.vectors(p), most = tile_rows<V>(C);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        through_hidden(C, count, gradients + m, w_h, p, tile);
        for (int r = 0; r < count; r++)
          for (int c = 0; c < C; c++) {
            int64_t unit = p * panels.width() + (int64_t)c * V::lanes;
            int lanes = out - unit < V::lanes ? (int)(out - unit) : V::lanes;
            To* at = to[m + r] + unit;
            store(load<V>(at, lanes) + V::load(tile + (r * C + c) * V::lanes), at, lanes);
          }
      }
    }
  }

  // The cell's backward at step t. The first `going` rows get a part of their output's gradient through a product:
  // from the next step's pre-activations with weight_hh, or from the projected output with weight_hr.
  void step_back(int64_t t, int64_t r0, int64_t rows, int64_t going, const Matrix<V, Stored>& w,
                 const Stored* const* gradients, T* const* carry) const {
    const Panels<V, Stored>& panels = w.panels;
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t q = 0; q < panels.count(); q++) {
      int64_t p = t & 1 ? panels.count() - 1 - q : q;
      int C = panels.vectors(p), most = tile_rows<V>(C);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        int through = going - m < count ? (int)(going > m ? going - m : 0) : count;
        if (through) {
          if (d.w_hr) multiply<V>(C, through, out, gradients + m, 1, w.at(p), w.step(p), tile, false);
          else through_hidden(C, through, gradients + m, w, p, tile);
        }
        for (int r = 0; r < count; r++)
          for (int c = 0; c < C; c++)
            units_back(t, r0 + m + r, p * panels.width() + (int64_t)c * V::lanes,
                       r < through ? tile + (r * C + c) * V::lanes : nullptr, carry);
      }
    }
  }

  void units_back(int64_t t, int64_t r, int64_t unit, const T* tile, T* const* carry) const {
    if (__builtin_expect(d.open, false)) units_back_open(t, r, unit, tile, carry);
    else if (H - unit >= V::lanes) units_back_of<Cell, true>(t, r, unit, V::lanes, tile, carry);
    else units_back_of<Cell, false>(t, r, unit, (int)(H - unit), tile, carry);
  }
  __attribute__((noinline)) void units_back_open(int64_t t, int64_t r, int64_t unit, const T* tile,
                                                 T* const* carry) const {
    using Open = typename Cell::open;
    if (H - unit >= V::lanes) units_back_of<Open, true>(t, r, unit, V::lanes, tile, carry);
    else units_back_of<Open, false>(t, r, unit, (int)(H - unit), tile, carry);
  }
  template <class Functor, bool full>
  TORCHRNN_INLINE void units_back_of(int64_t t, int64_t r, int64_t unit, int lanes, const T* tile,
                                     T* const* carry) const {
    int64_t n = s.index(t, r);
    bool last = ends(t, r);
    constexpr int saved = Functor::saved;
    V keep[saved > 0 ? saved : 1], previous[S], now[S], dnow[S], da[columns], dprevious[S];
    V sum = tile ? V::load(tile) : splat<V>(0);
    if (!d.w_hr) {
      if (d.dy.base) sum = sum + load<V, full>(d.dy.at(t, r) + unit, lanes);
      if (last && d.dfinal[0]) sum = sum + load<V, full>(d.dfinal[0] + r * out + unit, lanes);
      if (!last && Cell::reads[0]) sum = sum + load<V, full>(carry[0] + r * H + unit, lanes);
    }
    dnow[0] = sum;
    for (int k = 1; k < S; k++) {
      if constexpr (narrow) {
        dnow[k] = !last ? load<V, full>(carry[k] + r * H + unit, lanes)
                        : d.dfinal[k] ? load<V, full>(d.dfinal[k] + r * H + unit, lanes) : splat<V>(0);
      } else {
        const T* from = last ? (d.dfinal[k] ? d.dfinal[k] + r * H : nullptr) : carry[k] + r * H;
        dnow[k] = from ? load<V, full>(from + unit, lanes) : splat<V>(0);
      }
      if (d.dall[k]) dnow[k] = dnow[k] + load<V, full>(d.dall[k] + n * H + unit, lanes);
    }
    for (int j = 0; j < saved; j++) keep[j] = load<V, full>(d.keep + (n * saved + j) * H + unit, lanes);
    if (Functor::backward_reads_previous[0]) previous[0] = load<V, full>(output_before(t, r) + unit, lanes);
    if (Functor::backward_reads_new[0])
      now[0] = load<V, full>((d.w_hr ? d.unprojected + n * H : d.y.at(t, r)) + unit, lanes);
    for (int k = 1; k < S; k++) {
      if (Functor::backward_reads_previous[k]) previous[k] = load<V, full>(state_before(k, t, r) + unit, lanes);
      if (Functor::backward_reads_new[k]) now[k] = load<V, full>(d.sequence[k] + n * H + unit, lanes);
    }
    if constexpr (__is_same(Functor, Cell)) Functor::backward(keep, previous, now, dnow, da, dprevious);
    else Functor::backward(keep, previous, now, dnow, da, dprevious, d.options);
    for (int j = 0; j < columns; j++) store<full>(da[j], d.da + (n * columns + j) * H + unit, lanes);
    for (int k = Cell::reads[0] ? 0 : 1; k < S; k++)
      store<full>(Cell::reads[k] ? dprevious[k] : splat<V>(0), carry[k] + r * H + unit, lanes);
  }

  void initial_back(const Chunk& own, const Matrix<V, Stored>& w_h, const Stored** from, Stored** to,
                    T* const* carry) const {
    int64_t rows = 0;
    T** sums = (T**)to;
    for (int64_t r = own.begin; r < own.end; r++) {
      int64_t length = s.length(r), t = d.reverse ? length - 1 : 0;
      if constexpr (narrow) sums[rows] = carry[0] + r * H;  // summed before it is rounded
      else sums[rows] = d.dinitial[0] + r * out;
      from[rows] = d.da + s.index(t, r) * columns * H;
      for (int64_t j = 0; j < out; j++) sums[rows][j] = Cell::reads[0] ? carry[0][r * H + j] : 0;
      rows++;
    }
    hidden_rows(rows, from, w_h, sums);
    if constexpr (narrow)
      for (int64_t r = own.begin; r < own.end; r++) copy(carry[0] + r * H, d.dinitial[0] + r * out, out);
  }
};

// A part of the weight gradients: rows [n0, n1) of the pre-activation gradients against inputs or previous outputs.
template <class Cell, class V, class Stored = typename V::type>
struct WeightGradients {
  using T = typename V::type;
  static constexpr int G = Cell::gates, columns = Cell::columns;
  const Shape& s;
  const Direction<T, Stored>& d;
  int64_t N, H, out;
  const Stored **x, **h, **da;  // (N,) rows

  void fill() const {
    Sweep<Cell, V, Stored> sweep(s, d);
    for (int64_t t = 0; t < s.T; t++)
      for (int64_t r = 0; r < s.rows(t); r++) {
        int64_t n = s.index(t, r);
        x[n] = d.x.at(t, r);
        h[n] = sweep.output_before(t, r);
        da[n] = d.da + n * columns * H;
      }
  }

  // Part i of `of` of both products and of the sums of the biases. The x-parts stand side by side; the h-parts in runs.
  void part(int64_t i, int64_t of) const {
    run(s.I, x, 0, G * H * i / of, G * H * (i + 1) / of, d.dw_ih, d.db_ih);
    for (int g = 0; g < G; g += Sweep<Cell, V>::run_of(g)) {
      int64_t units = Sweep<Cell, V>::run_of(g) * H;
      run(out, h, Cell::h_column[g] * H, units * i / of, units * (i + 1) / of,
          d.dw_hh ? d.dw_hh + g * H * out : nullptr, d.db_hh ? d.db_hh + g * H : nullptr);
    }
  }

  void run(int64_t M, const Stored** a, int64_t column, int64_t begin, int64_t end, Stored* to, Stored* sums) const {
    if ((!to && !sums) || begin == end) return;
    Transposed<V, Stored> product{M, begin, end};
    Buffer<T> memory(product.scratch());
    Buffer<const Stored*> b(N);
    for (int64_t n = 0; n < N; n++) b[n] = da[n] + column;
    product.run(N, a, b, to, M, sums, memory);
  }
};

#include "samples.h"

// Part i of `of` of the gradients of the weights: of few steps as those of one sample, to the bit the same.
template <class Cell, class V, class Stored>
static void weight_gradients(const WeightGradients<Cell, V, Stored>& all, int64_t i, int64_t of) {
  using Few = SampleGradients<Cell, V, Stored>;
  bool few = all.N <= Few::Product::STEPS || Few{all.N, all.H}.takes(all.out);
  if (of == 1 && few && !all.d.w_hr) sample_gradients(all, 1, 0, 1);
  else all.part(i, of);
}

template <class Cell, class V, class Stored = typename V::type>
static void layer_backward(const Layer<typename V::type, Stored>& layer) {
  using T = typename V::type;
  constexpr bool narrow = !__is_same(Stored, T);
  const Shape& s = layer.shape;
  constexpr int G = Cell::gates, S = Cell::states;
  int64_t H = s.H, out = s.P ? s.P : s.H, N = s.total();
  Profile* profile = layer.profile;
  if (profile) begin(*profile);
  int apart = narrow && H & 1 ? G : 1;  // each gate fills up its last pair
  Panels<V, Stored> of_h(out, 1, G * H / apart, apart), of_r(H, 1, s.P), of_x(s.I, 1, G * H / apart, apart);
  int64_t size = of_h.size() + of_r.size() + of_x.size(), states = layer.directions * S * s.B * H;
  Buffer<Stored> packed(size * layer.directions);
  Buffer<T> carries(states * (narrow ? 2 : 1));
  Matrix<V, Stored> h[2] = {{of_h}, {of_h}}, r[2] = {{of_r}, {of_r}}, x[2] = {{of_x}, {of_x}};
  in_parallel(layer.parallel, layer.directions, [&](int64_t i) {
    const Direction<T, Stored>& d = layer.direction[i];
    h[i].packed = packed + i * size, r[i].packed = h[i].packed + of_h.size(), x[i].packed = r[i].packed + of_r.size();
    h[i].pack(d.w_hh, 0, 1, out, N, s.T);
    if (d.w_hr) r[i].pack(d.w_hr, 0, 1, H, N, s.T);
    if (d.dx.base) x[i].pack(d.w_ih, 0, 1, s.I, N, 1);
  });
  if (profile) lap(*profile, PACKING);
  int64_t work = N * G * H * (s.I + out);
  int64_t chunks = row_chunks<V>(s, layer.directions, layer.parallel, work);
  in_parallel(layer.parallel, layer.directions * chunks, [&](int64_t i) {
    int64_t of = i / chunks;
    Direction<T, Stored> d = layer.direction[of];
    T* carry[MAX_STATES];
    for (int k = 0; k < S; k++) {
      carry[k] = carries + (of * S + k) * s.B * H;
      if constexpr (narrow) d.running[k] = carry[k] + states;
      else if (k && d.dinitial[k]) carry[k] = d.dinitial[k];
    }
    Backward<Cell, V, Stored>(s, d).run(chunk(s, i % chunks, chunks), h[of], r[of], carry);
  });
  if (profile) lap(*profile, SWEEP_BACKWARD);

  int64_t parts = row_chunks<V>(s, 1, layer.parallel, work);
  if (parts > N) parts = N;
  for (int i = 0; i < layer.directions; i++) {  // one direction after the other: both write to dx
    const Direction<T, Stored>& d = layer.direction[i];
    Buffer<const Stored*> rows(3 * N);
    WeightGradients<Cell, V, Stored> gradients{s, d, N, H, out, rows, rows + N, rows + 2 * N};
    gradients.fill();
    in_parallel(layer.parallel, parts, [&](int64_t part) {
      if (layer.samples) sample_gradients(gradients, layer.samples, part, parts);
      else weight_gradients(gradients, part, parts);
      if (d.w_hr && d.dw_hr && !layer.samples) {
        int64_t begin = s.P * part / parts, end = s.P * (part + 1) / parts;
        Transposed<V, Stored> product{H, begin, end};
        Buffer<T> memory(product.scratch());
        Buffer<const Stored*> a(N), b(N);
        for (int64_t n = 0; n < N; n++) a[n] = d.unprojected + n * H, b[n] = d.dprojected + n * out;
        product.run(N, a, b, d.dw_hr, H, nullptr, memory);
      }
      if (profile) lap(*profile, WEIGHT_GRADIENTS);  // null where there are several threads
      if (d.dx.base) {
        int64_t begin = N * part / parts, end = N * (part + 1) / parts;
        Buffer<Stored*> to(N);
        for (int64_t t = 0; t < s.T; t++)
          for (int64_t r = 0; r < s.rows(t); r++) to[s.index(t, r)] = d.dx.at(t, r);
        multiply_all<V>(end - begin, x[i], (const Stored* const*)(gradients.da + begin), (Stored* const*)(to + begin), nullptr, d.add_dx);
      }
      if (profile) lap(*profile, INPUT_GRADIENTS);
    });
  }
}

// The gradients of the weights alone, from rows that come from many calls; see kernels.h.
template <class Cell, class V>
static void weights_backward(const Layer<typename V::type>& layer, const typename V::type** x, const typename V::type** h,
                             const typename V::type** da) {
  const Shape& s = layer.shape;
  const Direction<typename V::type>& d = layer.direction[0];
  WeightGradients<Cell, V> gradients{s, d, s.B, s.H, s.H, x, h, da};
  int64_t parts = row_chunks<V>(s, 1, layer.parallel, s.B * Cell::gates * s.H * (s.I + s.H));
  in_parallel(layer.parallel, parts, [&](int64_t part) { weight_gradients(gradients, part, parts); });
  if (layer.profile) lap(*layer.profile, WEIGHT_GRADIENTS);
}
