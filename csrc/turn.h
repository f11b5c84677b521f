// Rows turned into columns: a square block in registers, and up to a vector of long rows.

// Rows and columns of a square block exchanged: in each round, neighbours `half` apart swap their off-diagonal quarters.
template <class V>
static TORCHRNN_INLINE void transpose(V (&rows)[V::lanes]) {
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
    for (int i = 0; i < L; i++)
      if (!(i & half)) {
        V a = rows[i], b = rows[i + half];
        rows[i].v = __builtin_shuffle(a.v, b.v, low);
        rows[i + half].v = __builtin_shuffle(a.v, b.v, high);
      }
  }
#else
  typename V::type block[L][L];
  for (int i = 0; i < L; i++)
    for (int j = 0; j < L; j++) block[j][i] = rows[i].v[j];
  for (int i = 0; i < L; i++) rows[i] = V::load(block[i]);
#endif
}

#if TORCHRNN_AVX512
// The same with instructions that need no indices, at twice the speed: within 128 bits, then their blocks.
static TORCHRNN_INLINE void transpose(Vec<float, 16> (&rows)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    __m512 x = (__m512)rows[i].v, y = (__m512)rows[i + 1].v;
    b[i] = _mm512_maskz_unpacklo_ps(-1, x, y);
    b[i + 1] = _mm512_maskz_unpackhi_ps(-1, x, y);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
      __m512d x = (__m512d)b[i + j], y = (__m512d)b[i + j + 2];
      a[i + 2 * j] = (__m512)_mm512_maskz_unpacklo_pd(-1, x, y);
      a[i + 2 * j + 1] = (__m512)_mm512_maskz_unpackhi_pd(-1, x, y);
    }
  // block q of a[i + j] is now column 4 q + j of rows i to i + 3
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 8) {
      b[i + j] = _mm512_maskz_shuffle_f32x4(-1, a[i + j], a[i + 4 + j], 0x88);      // even blocks
      b[i + 4 + j] = _mm512_maskz_shuffle_f32x4(-1, a[i + j], a[i + 4 + j], 0xdd);  // odd ones
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      rows[i + j].v = (Vec<float, 16>::native)_mm512_maskz_shuffle_f32x4(-1, b[i + j], b[i + 8 + j], 0x88);
      rows[i + 8 + j].v = (Vec<float, 16>::native)_mm512_maskz_shuffle_f32x4(-1, b[i + j], b[i + 8 + j], 0xdd);
    }
}
#endif

// Up to a vector of rows turned: out[k * step + l] = row[l][k], zero from lane `rows` on. Gives the sum over k of
// watch(what stands there, sum).
template <class V, bool all = false, class Watch>
static V turn_rows(const typename V::type* const* row, int rows, int64_t K, typename V::type* out, int64_t step,
                   const Watch& watch) {
  constexpr int L = V::lanes;
  if constexpr (!all)
    if (rows == L) return turn_rows<V, true>(row, rows, K, out, step, watch);
  V zero = splat<V>(0), sum[4] = {zero, zero, zero, zero};
  int64_t k = 0;
  for (; k + L <= K; k += L) {
    V block[L];
    for (int l = 0; l < L; l++) block[l] = all || l < rows ? V::load(row[l] + k) : zero;
    transpose(block);
#pragma GCC unroll 16
    for (int l = 0; l < L; l++) block[l].store(out + (k + l) * step), sum[l % 4] = watch(block[l], sum[l % 4]);
  }
  if (k < K) {
    V block[L];
    for (int l = 0; l < L; l++) block[l] = all || l < rows ? V::load_first(row[l] + k, (int)(K - k)) : zero;
    transpose(block);
    for (int l = 0; k + l < K; l++) block[l].store(out + (k + l) * step), sum[0] = watch(block[l], sum[0]);
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// For turn_rows: zero, or NaN where a number is not finite.
template <class V>
static TORCHRNN_INLINE V times_zero(V value, V sum) {
  return fma(value, splat<V>(0), sum);
}
