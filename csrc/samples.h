// The gradients of the weights for each of several samples, from one sweep: rows of all samples stand side by side.

// Step n of all rows belongs to sample n % samples. Part i of `of` has its own samples; each gradient is (samples, …).
template <class Cell, class V, class Stored>
static void sample_gradients(const WeightGradients<Cell, V, Stored>& all, int64_t samples, int64_t i, int64_t of) {
  using T = typename V::type;
  const int64_t K = all.N / samples, H = all.H, out = all.out, I = all.s.I, P = all.s.P;
  const int64_t width = WeightGradients<Cell, V, Stored>::columns * H;
  Direction<T, Stored> d = all.d;
  Buffer<const Stored*> rows(3 * K);
  Buffer<Stored> own_da(K * width);  // moved together: where rows are far apart the processor fetches none of them ahead
  WeightGradients<Cell, V, Stored> one{all.s, d, K, H, out, rows, rows + K, rows + 2 * K};
  for (int64_t v = samples * i / of; v < samples * (i + 1) / of; v++) {
    auto own = [v](Stored* first, int64_t size) { return first ? first + v * size : nullptr; };
    constexpr int G = Cell::gates;
    d.dw_ih = own(all.d.dw_ih, G * H * I), d.dw_hh = own(all.d.dw_hh, G * H * out);
    d.db_ih = own(all.d.db_ih, G * H), d.db_hh = own(all.d.db_hh, G * H);
    for (int64_t k = 0, n = v; k < K; k++, n += samples) {
      one.x[k] = all.x[n], one.h[k] = all.h[n], one.da[k] = own_da + k * width;
      __builtin_memcpy(own_da + k * width, all.da[n], (size_t)width * sizeof(Stored));
    }
    one.part(0, 1);
    if (!d.w_hr || !all.d.dw_hr) continue;
    Transposed<V, Stored> product{H, 0, P};
    Buffer<T> memory(product.scratch());
    for (int64_t k = 0, n = v; k < K; k++, n += samples) one.x[k] = d.unprojected + n * H, one.h[k] = d.dprojected + n * out;
    product.run(K, one.x, one.h, own(all.d.dw_hr, P * H), H, nullptr, memory);
  }
}
