// The sweep of one recurrent layer over time, forward and backward, for any cell and number type.
//
// A step multiplies the previous outputs with packed panels of weight_hh and applies the cell's function to the tile
// while it is in the cache. Tasks own rows of the batch for the whole sequence, or a direction: no barrier in a step.
// Letters as in layer.h.

// Scratch memory, as aligned as the longest vector.
template <class T>
struct Buffer {
  T* data;
  explicit Buffer(int64_t n) : data((T*)aligned_alloc(64, ((size_t)(n > 0 ? n : 1) * sizeof(T) + 63) / 64 * 64)) {
    if (!data) abort();  // nothing sensible is left to do; torch's own allocator has been asked for far more
  }
  ~Buffer() { free(data); }
  Buffer(const Buffer&) = delete;
  operator T*() const { return data; }
};

template <class F>
static void in_parallel(const Parallel& parallel, int64_t tasks, const F& f) {
  if (tasks == 1 || parallel.threads == 1) {
    for (int64_t i = 0; i < tasks; i++) f(i);
  } else {
    parallel.run(tasks, [](void* data, int64_t i) { (*(const F*)data)(i); }, (void*)&f);
  }
}

// All lanes, or the first ones: decided outside, so that the usual case has no branches.
template <class V, bool full = false>
static TORCHRNN_INLINE V load(const typename V::type* from, int lanes) {
  if (full || lanes == V::lanes) return V::load(from);
  return V::load_first(from, lanes);
}
template <bool full = false, class V>
static TORCHRNN_INLINE void store(V value, typename V::type* to, int lanes) {
  if (full || lanes == V::lanes) value.store(to);
  else value.store_first(to, lanes);
}

// Rows [begin, end) of the batch that a task owns.
struct Chunk {
  int64_t begin, end;
  int64_t rows(const Shape& s, int64_t t) const {
    int64_t n = s.rows(t);
    return n <= begin ? 0 : (n < end ? n : end) - begin;
  }
};

// Cut the batch into chunks of about equal work: rows are sorted by length, so the first chunks have fewer.
static Chunk chunk(const Shape& s, int64_t i, int64_t of) {
  if (!s.running) return {s.B * i / of, s.B * (i + 1) / of};
  int64_t total = s.total(), seen = 0, bounds[2] = {0, s.B};
  for (int64_t r = 0, next = 0; r < s.B; r++) {
    for (; next < of && seen * of >= total * next; next++) {
      if (next == i) bounds[0] = r;
      if (next == i + 1) bounds[1] = r;
    }
    seen += s.length(r);
  }
  return {bounds[0], bounds[1]};
}

template <class Cell, class V>
struct Sweep {
  using T = typename V::type;
  static constexpr int G = Cell::gates, S = Cell::states, columns = Cell::columns, saved = Cell::saved;

  const Shape& s;
  const Direction<T>& d;
  int64_t H, out;

  Sweep(const Shape& s, const Direction<T>& d) : s(s), d(d), H(s.H), out(s.P ? s.P : s.H) {}

  int64_t time(int64_t i) const { return d.reverse ? s.T - 1 - i : i; }
  int64_t before(int64_t t) const { return d.reverse ? t + 1 : t - 1; }
  bool begins(int64_t t, int64_t r) const { return d.reverse ? t + 1 == s.T || r >= s.rows(t + 1) : t == 0; }
  bool ends(int64_t t, int64_t r) const { return d.reverse ? t == 0 : t + 1 == s.T || r >= s.rows(t + 1); }

  const T* output_before(int64_t t, int64_t r) const {
    return begins(t, r) ? d.initial[0] + r * out : d.y.at(before(t), r);
  }
  // State k > 0 before step t: in training at its place in the sequence, otherwise in the final states, step by step.
  const T* state_before(int k, int64_t t, int64_t r) const {
    if (!d.sequence[k]) return d.final[k] + r * H;
    return begins(t, r) ? d.initial[k] + r * H : d.sequence[k] + s.index(before(t), r) * H;
  }

  // ---- forward

  void forward(const Chunk& own, const Matrix<V>& w_x, const Matrix<V>& w_h, const Matrix<V>& w_r,
               const T* bias) const {
    int64_t B = own.end - own.begin;
    if (B <= 0) return;
    start(own);
    int64_t slab = B >= 96 ? 1 : (96 + B - 1) / B;
    if (slab > s.T) slab = s.T;
    Buffer<T> x_part(slab * B * G * H + V::lanes);
    Buffer<T*> pointers(4 * slab * B);
    Buffer<T> middle(d.w_hr && !d.unprojected ? B * H : 1);
    for (int64_t i = 0; i < s.T; i += slab) {
      int64_t last = i + slab < s.T ? i + slab : s.T, M = 0;
      T **from = pointers, **to = pointers + slab * B;
      for (int64_t j = i; j < last; j++)
        for (int64_t r = 0, n = own.rows(s, time(j)); r < n; r++, M++) {
          from[M] = (T*)d.x.at(time(j), own.begin + r);
          to[M] = x_part + M * G * H;
        }
      multiply_all<V>(M, w_x, (const T* const*)from, to, bias, false);
      const T* part = x_part;
      for (int64_t j = i; j < last; j++) {
        int64_t n = own.rows(s, time(j));
        step(time(j), own.begin, n, part, w_h, w_r, (const T**)(pointers + 2 * slab * B), middle);
        part += n * G * H;
      }
    }
    finish(own);
  }

  // One step of few rows, straight from the weights as they lie.
  void forward_direct() const {
    start({0, s.B});
    alignas(64) T tile[G * V::lanes];
    Buffer<T> x_part(G * H + V::lanes);
    for (int64_t r = 0; r < s.B; r++) {
      const T *x = d.x.at(0, r), *h = output_before(0, r);
      for (int64_t n = 0; n < G * H; n += V::lanes) {
        int lanes = G * H - n < V::lanes ? (int)(G * H - n) : V::lanes;
        V sum = dot_rows<V>(lanes, s.I, d.w_ih + n * s.I, s.I, x);
        if (d.b_ih) sum = sum + load<V>(d.b_ih + n, lanes);
        sum.store(x_part + n);
      }
      for (int64_t unit = 0; unit < H; unit += V::lanes) {
        int lanes = H - unit < V::lanes ? (int)(H - unit) : V::lanes;
        for (int g = 0; g < G; g++) {
          V sum = dot_rows<V>(lanes, out, d.w_hh + (g * H + unit) * out, out, h);
          if (d.b_hh && Cell::h_column[g] == g) sum = sum + load<V>(d.b_hh + g * H + unit, lanes);
          sum.store(tile + g * V::lanes);
        }
        units(0, r, unit, tile, x_part, h, nullptr);
      }
    }
    finish({0, s.B});
  }

  void start(const Chunk& own) const {
    for (int k = 1; k < S; k++)
      if (!d.sequence[k])
        for (int64_t j = own.begin * H; j < own.end * H; j++) d.final[k][j] = d.initial[k][j];
  }

  void finish(const Chunk& own) const {
    for (int64_t r = own.begin; r < own.end; r++) {
      int64_t length = s.length(r), t = d.reverse ? 0 : length - 1;
      const T* from = length ? d.y.at(t, r) : d.initial[0] + r * out;
      for (int64_t j = 0; j < out; j++) d.final[0][r * out + j] = from[j];
      for (int k = 1; k < S; k++)
        if (d.sequence[k])
          for (int64_t j = 0; j < H; j++)
            d.final[k][r * H + j] = length ? d.sequence[k][s.index(t, r) * H + j] : d.initial[k][r * H + j];
    }
  }

  void step(int64_t t, int64_t r0, int64_t rows, const T* x_part, const Matrix<V>& w_h, const Matrix<V>& w_r,
            const T** pointers, T* middle) const {
    const Panels<V>& panels = w_h.panels;
    const T** previous = pointers;
    T** projected = (T**)(pointers + rows);
    for (int64_t r = 0; r < rows; r++) previous[r] = output_before(t, r0 + r);
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t q = 0; q < panels.count(); q++) {
      int64_t p = t & 1 ? panels.count() - 1 - q : q;  // to and fro: the panels used last are still in the cache
      int vectors = panels.vectors(p), C = vectors * G, most = tile_rows<V>(C);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        multiply<V>(C, count, out, previous + m, 1, w_h.at(p), w_h.step(p), tile, false);
        for (int r = 0; r < count; r++)
          for (int b = 0; b < vectors; b++)
            units(t, r0 + m + r, p * panels.width() + (int64_t)b * V::lanes, tile + (r * C + b * G) * V::lanes,
                  x_part + (m + r) * G * H, previous[m + r], middle + (m + r) * H);
      }
    }
    if (!d.w_hr) return;
    for (int64_t r = 0; r < rows; r++) {
      previous[r] = d.unprojected ? d.unprojected + s.index(t, r0 + r) * H : middle + r * H;
      projected[r] = d.y.at(t, r0 + r);
    }
    multiply_all<V>(rows, w_r, previous, projected, nullptr, false);
  }

  // One vector of units of one row: the cell's function on the tile.
  void units(int64_t t, int64_t r, int64_t unit, const T* tile, const T* x_part, const T* previous, T* middle) const {
    if (H - unit >= V::lanes) units_of<true>(t, r, unit, V::lanes, tile, x_part, previous, middle);
    else units_of<false>(t, r, unit, (int)(H - unit), tile, x_part, previous, middle);
  }
  template <bool full>
  TORCHRNN_INLINE void units_of(int64_t t, int64_t r, int64_t unit, int lanes, const T* tile, const T* x_part,
                                const T* previous, T* middle) const {
    V a[columns], before[S], after[S], keep[saved > 0 ? saved : 1];
    for (int g = 0; g < G; g++) {
      V x = load<V, full>(x_part + g * H + unit, lanes), h = V::load(tile + g * V::lanes);
      int column = Cell::h_column[g];
      if (column == g) {
        a[g] = x + h;
      } else {
        a[g] = x;
        a[column] = d.b_hh ? h + load<V, full>(d.b_hh + g * H + unit, lanes) : h;
      }
    }
    for (int k = 0; k < S; k++)
      if (Cell::reads[k]) before[k] = load<V, full>((k ? state_before(k, t, r) : previous) + unit, lanes);
    Cell::forward(a, before, after, keep);
    int64_t n = s.index(t, r);
    T* output = !d.w_hr ? d.y.at(t, r) : d.unprojected ? d.unprojected + n * H : middle;
    store<full>(after[0], output + unit, lanes);
    for (int k = 1; k < S; k++)
      store<full>(after[k], (d.sequence[k] ? d.sequence[k] + n * H : d.final[k] + r * H) + unit, lanes);
    if (d.keep)
      for (int j = 0; j < saved; j++) store<full>(keep[j], d.keep + (n * saved + j) * H + unit, lanes);
  }

  // ---- backward

  void backward(const Chunk& own, const Matrix<V>& w_h, const Matrix<V>& w_r, T* const* carry) const {
    int64_t B = own.end - own.begin;
    if (B <= 0) return;
    Buffer<const T*> from(B);
    Buffer<T*> to(B);
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
  }

  int64_t after(int64_t t) const { return d.reverse ? t - 1 : t + 1; }

  void next_gradients(int64_t t, int64_t r0, int64_t rows, const T** to) const {
    for (int64_t r = 0; r < rows; r++) to[r] = d.da + s.index(after(t), r0 + r) * columns * H;
  }

  // Gates whose h-parts stand side by side among the columns, from gate g on.
  static constexpr int run_of(int g) {
    int next = g + 1;
    while (next < G && Cell::h_column[next] == Cell::h_column[g] + next - g) next++;
    return next - g;
  }

  // tile = (gradients of the h-parts of `rows`) · weight_hh, run by run of neighbouring columns.
  void through_hidden(int C, int rows, const T* const* gradients, const T* w, int64_t step, T* tile) const {
    const T* at[8];
    for (int g = 0; g < G; g += run_of(g)) {
      for (int r = 0; r < rows; r++) at[r] = gradients[r] + Cell::h_column[g] * H;
      multiply<V>(C, rows, run_of(g) * H, at, 1, w + (int64_t)g * H * step, step, tile, g > 0);
    }
  }

  // Gradients of the projected outputs, (N, P): from above, and through weight_hh from the next step.
  void project_back(int64_t t, int64_t r0, int64_t rows, int64_t going, const Matrix<V>& w_h, const T** from,
                    T** to) const {
    for (int64_t r = 0; r < rows; r++) {
      to[r] = d.dprojected + s.index(t, r0 + r) * out;
      const T* above = d.dy.base ? d.dy.at(t, r0 + r) : nullptr;
      const T* last = r >= going && d.dfinal[0] ? d.dfinal[0] + (r0 + r) * out : nullptr;
      for (int64_t j = 0; j < out; j++) to[r][j] = (above ? above[j] : 0) + (last ? last[j] : 0);
    }
    next_gradients(t, r0, going, from);
    hidden_rows(going, from, w_h, to);
  }

  // to[r] += gradients[r] · weight_hh
  void hidden_rows(int64_t rows, const T* const* gradients, const Matrix<V>& w_h, T* const* to) const {
    const Panels<V>& panels = w_h.panels;
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t p = 0; p < panels.count(); p++) {
      int C = panels.vectors(p), most = tile_rows<V>(C);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        through_hidden(C, count, gradients + m, w_h.at(p), w_h.step(p), tile);
        for (int r = 0; r < count; r++)
          for (int c = 0; c < C; c++) {
            int64_t unit = p * panels.width() + (int64_t)c * V::lanes;
            int lanes = out - unit < V::lanes ? (int)(out - unit) : V::lanes;
            T* at = to[m + r] + unit;
            store(load<V>(at, lanes) + V::load(tile + (r * C + c) * V::lanes), at, lanes);
          }
      }
    }
  }

  // The cell's backward at step t. The first `going` rows get a part of their output's gradient through a product:
  // from the next step's pre-activations with weight_hh, or from the projected output with weight_hr.
  void step_back(int64_t t, int64_t r0, int64_t rows, int64_t going, const Matrix<V>& w, const T* const* gradients,
                 T* const* carry) const {
    const Panels<V>& panels = w.panels;
    alignas(64) T tile[MAX_TILE * V::lanes];
    for (int64_t q = 0; q < panels.count(); q++) {
      int64_t p = t & 1 ? panels.count() - 1 - q : q;
      int C = panels.vectors(p), most = tile_rows<V>(C);
      for (int64_t m = 0; m < rows; m += most) {
        int count = rows - m < most ? (int)(rows - m) : most;
        int through = going - m < count ? (int)(going > m ? going - m : 0) : count;
        if (through) {
          if (d.w_hr) multiply<V>(C, through, out, gradients + m, 1, w.at(p), w.step(p), tile, false);
          else through_hidden(C, through, gradients + m, w.at(p), w.step(p), tile);
        }
        for (int r = 0; r < count; r++)
          for (int c = 0; c < C; c++)
            units_back(t, r0 + m + r, p * panels.width() + (int64_t)c * V::lanes,
                       r < through ? tile + (r * C + c) * V::lanes : nullptr, carry);
      }
    }
  }

  void units_back(int64_t t, int64_t r, int64_t unit, const T* tile, T* const* carry) const {
    if (H - unit >= V::lanes) units_back_of<true>(t, r, unit, V::lanes, tile, carry);
    else units_back_of<false>(t, r, unit, (int)(H - unit), tile, carry);
  }
  template <bool full>
  TORCHRNN_INLINE void units_back_of(int64_t t, int64_t r, int64_t unit, int lanes, const T* tile,
                                     T* const* carry) const {
    int64_t n = s.index(t, r);
    bool last = ends(t, r);
    V keep[saved > 0 ? saved : 1], previous[S], now[S], dnow[S], da[columns], dprevious[S];
    V sum = tile ? V::load(tile) : splat<V>(0);
    if (!d.w_hr) {
      if (d.dy.base) sum = sum + load<V, full>(d.dy.at(t, r) + unit, lanes);
      if (last && d.dfinal[0]) sum = sum + load<V, full>(d.dfinal[0] + r * out + unit, lanes);
      if (!last && Cell::reads[0]) sum = sum + load<V, full>(carry[0] + r * H + unit, lanes);
    }
    dnow[0] = sum;
    for (int k = 1; k < S; k++) {
      const T* from = last ? (d.dfinal[k] ? d.dfinal[k] + r * H : nullptr) : carry[k] + r * H;
      dnow[k] = from ? load<V, full>(from + unit, lanes) : splat<V>(0);
    }
    for (int j = 0; j < saved; j++) keep[j] = load<V, full>(d.keep + (n * saved + j) * H + unit, lanes);
    for (int k = 0; k < S; k++) {
      if (Cell::backward_reads_previous[k])
        previous[k] = load<V, full>((k ? state_before(k, t, r) : output_before(t, r)) + unit, lanes);
      if (Cell::backward_reads_new[k]) {
        const T* from = k ? d.sequence[k] + n * H : d.w_hr ? d.unprojected + n * H : d.y.at(t, r);
        now[k] = load<V, full>(from + unit, lanes);
      }
    }
    Cell::backward(keep, previous, now, dnow, da, dprevious);
    for (int j = 0; j < columns; j++) store<full>(da[j], d.da + (n * columns + j) * H + unit, lanes);
    for (int k = Cell::reads[0] ? 0 : 1; k < S; k++)
      store<full>(Cell::reads[k] ? dprevious[k] : splat<V>(0), carry[k] + r * H + unit, lanes);
  }

  void initial_back(const Chunk& own, const Matrix<V>& w_h, const T** from, T** to, T* const* carry) const {
    int64_t rows = 0;
    for (int64_t r = own.begin; r < own.end; r++) {
      int64_t length = s.length(r), t = d.reverse ? length - 1 : 0;
      to[rows] = d.dinitial[0] + r * out;
      from[rows] = d.da + s.index(t, r) * columns * H;
      for (int64_t j = 0; j < out; j++) to[rows][j] = Cell::reads[0] ? carry[0][r * H + j] : 0;
      rows++;
    }
    hidden_rows(rows, from, w_h, to);
  }
};

// ---- a whole layer

template <class V>
static int64_t row_chunks(const Shape& s, int directions, const Parallel& parallel, int64_t work) {
  int64_t most = parallel.threads / directions;
  if (work < 200000 || most < 1) return 1;
  return most < s.B ? most : s.B;
}

template <class Cell, class V>
static void layer_forward(const Layer<typename V::type>& layer) {
  using T = typename V::type;
  const Shape& s = layer.shape;
  constexpr int G = Cell::gates;
  int64_t H = s.H, out = s.P ? s.P : s.H;
  if (s.T == 1 && s.B <= 4 && !s.P) {
    for (int i = 0; i < layer.directions; i++) Sweep<Cell, V>(s, layer.direction[i]).forward_direct();
    return;
  }
  Panels<V> of_x(G * H, 1, s.I), of_h(H, G, out), of_r(s.P, 1, H);
  int64_t size = of_x.size() + of_h.size() + of_r.size() + G * H + V::lanes;
  Buffer<T> packed(size * layer.directions);
  Matrix<V> x[2] = {{of_x}, {of_x}}, h[2] = {{of_h}, {of_h}}, r[2] = {{of_r}, {of_r}};
  T* bias[2] = {};
  in_parallel(layer.parallel, layer.directions, [&](int64_t i) {
    const Direction<T>& d = layer.direction[i];
    x[i].packed = packed + i * size, h[i].packed = x[i].packed + of_x.size(), r[i].packed = h[i].packed + of_h.size();
    x[i].pack(d.w_ih, 0, s.I, 1, s.total());
    h[i].pack(d.w_hh, H * out, out, 1, s.total());
    if (d.w_hr) r[i].pack(d.w_hr, 0, H, 1, s.total());
    if (!d.b_ih) return;
    bias[i] = r[i].packed + of_r.size();
    for (int64_t j = 0; j < G * H; j++) bias[i][j] = d.b_ih[j] + (Cell::h_column[j / H] == j / H ? d.b_hh[j] : 0);
  });
  int64_t chunks = row_chunks<V>(s, layer.directions, layer.parallel, s.total() * G * H * (s.I + out));
  in_parallel(layer.parallel, layer.directions * chunks, [&](int64_t i) {
    int64_t of = i / chunks;
    Sweep<Cell, V>(s, layer.direction[of]).forward(chunk(s, i % chunks, chunks), x[of], h[of], r[of], bias[of]);
  });
}

// A part of the weight gradients: rows [n0, n1) of the pre-activation gradients against inputs or previous outputs.
template <class Cell, class V>
struct WeightGradients {
  using T = typename V::type;
  static constexpr int G = Cell::gates, columns = Cell::columns;
  const Shape& s;
  const Direction<T>& d;
  int64_t N, H, out;
  const T **x, **h, **da;  // (N,) rows

  void fill() const {
    Sweep<Cell, V> sweep(s, d);
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

  void run(int64_t M, const T** a, int64_t column, int64_t begin, int64_t end, T* to, T* sums) const {
    if ((!to && !sums) || begin == end) return;
    Transposed<V> product{M, begin, end};
    Buffer<T> memory(product.scratch());
    Buffer<const T*> b(N);
    for (int64_t n = 0; n < N; n++) b[n] = da[n] + column;
    product.run(N, a, b, to, M, sums, memory);
  }
};

template <class Cell, class V>
static void layer_backward(const Layer<typename V::type>& layer) {
  using T = typename V::type;
  const Shape& s = layer.shape;
  constexpr int G = Cell::gates, S = Cell::states;
  int64_t H = s.H, out = s.P ? s.P : s.H, N = s.total();
  Panels<V> of_h(out, 1, G * H), of_r(H, 1, s.P), of_x(s.I, 1, G * H);
  int64_t size = of_h.size() + of_r.size() + of_x.size();
  Buffer<T> packed(size * layer.directions), carries(layer.directions * S * s.B * H);
  Matrix<V> h[2] = {{of_h}, {of_h}}, r[2] = {{of_r}, {of_r}}, x[2] = {{of_x}, {of_x}};
  in_parallel(layer.parallel, layer.directions, [&](int64_t i) {
    const Direction<T>& d = layer.direction[i];
    h[i].packed = packed + i * size, r[i].packed = h[i].packed + of_h.size(), x[i].packed = r[i].packed + of_r.size();
    h[i].pack(d.w_hh, 0, 1, out, N);
    if (d.w_hr) r[i].pack(d.w_hr, 0, 1, H, N);
    if (d.dx.base) x[i].pack(d.w_ih, 0, 1, s.I, N);
  });
  int64_t work = N * G * H * (s.I + out);
  int64_t chunks = row_chunks<V>(s, layer.directions, layer.parallel, work);
  in_parallel(layer.parallel, layer.directions * chunks, [&](int64_t i) {
    int64_t of = i / chunks;
    const Direction<T>& d = layer.direction[of];
    T* carry[MAX_STATES];
    for (int k = 0; k < S; k++) carry[k] = k && d.dinitial[k] ? d.dinitial[k] : carries + (of * S + k) * s.B * H;
    Sweep<Cell, V>(s, d).backward(chunk(s, i % chunks, chunks), h[of], r[of], carry);
  });

  int64_t parts = row_chunks<V>(s, 1, layer.parallel, work);
  if (parts > N) parts = N;
  for (int i = 0; i < layer.directions; i++) {  // one direction after the other: both write to dx
    const Direction<T>& d = layer.direction[i];
    Buffer<const T*> rows(3 * N);
    WeightGradients<Cell, V> gradients{s, d, N, H, out, rows, rows + N, rows + 2 * N};
    gradients.fill();
    in_parallel(layer.parallel, parts, [&](int64_t part) {
      gradients.part(part, parts);
      if (d.w_hr && d.dw_hr) {
        int64_t begin = s.P * part / parts, end = s.P * (part + 1) / parts;
        Transposed<V> product{H, begin, end};
        Buffer<T> memory(product.scratch());
        Buffer<const T*> a(N), b(N);
        for (int64_t n = 0; n < N; n++) a[n] = d.unprojected + n * H, b[n] = d.dprojected + n * out;
        product.run(N, a, b, d.dw_hr, H, nullptr, memory);
      }
      if (d.dx.base) {
        int64_t begin = N * part / parts, end = N * (part + 1) / parts;
        Buffer<T*> to(N);
        for (int64_t t = 0; t < s.T; t++)
          for (int64_t r = 0; r < s.rows(t); r++) to[s.index(t, r)] = d.dx.at(t, r);
        multiply_all<V>(end - begin, x[i], gradients.da + begin, to + begin, nullptr, d.add_dx);
      }
    });
  }
}
