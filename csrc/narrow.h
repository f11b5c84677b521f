// Products of bfloat16: pairs of neighbours in k, each multiplied and added in float32 by one instruction (vdpbf16ps).
//
// A pair takes a lane's 32 bits, so what moves lanes (loads, transpose) moves pairs; only here are they numbers. A packed
// panel is [pair of k][C][L][2], its last pair filled up with zero where K is odd. The instruction takes numbers below
// 1.2e-38 for zero. For other headers: included before them where the instruction set has it (TORCHRNN_NARROW).

template <class V, bool full = false>
static TORCHRNN_INLINE V load(const bfloat16* from, int lanes) {
  const __mmask16 here = full ? -1 : (__mmask16)((1u << lanes) - 1);
  __m512i wide = _mm512_maskz_cvtepu16_epi32(-1, _mm256_maskz_loadu_epi16(here, from));
  return {(typename V::native)_mm512_maskz_slli_epi32(-1, wide, 16)};
}

template <bool full = false, class V>
static TORCHRNN_INLINE void store(V value, bfloat16* to, int lanes) {
  const __mmask16 here = full ? -1 : (__mmask16)((1u << lanes) - 1);
  _mm256_mask_storeu_epi16(to, here, (__m256i)_mm512_cvtneps_pbh((__m512)value.v));
}

// Pairs (low[l], high[l]); where high is null, (low[l], 0).
template <class V>
static TORCHRNN_INLINE V pairs(const bfloat16* low, const bfloat16* high, int lanes) {
  const __mmask16 here = (__mmask16)((1u << lanes) - 1);
  __m512i bits = _mm512_maskz_cvtepu16_epi32(-1, _mm256_maskz_loadu_epi16(here, low));
  if (high) {
    __m512i upper = _mm512_maskz_cvtepu16_epi32(-1, _mm256_maskz_loadu_epi16(here, high));
    bits = _mm512_or_si512(bits, _mm512_maskz_slli_epi32(-1, upper, 16));
  }
  return {(typename V::native)bits};
}

// As the multiply_tile of gemm.h, of K numbers; `stride` is that between pairs in pairs, `step` a panel's for each k.
template <class V, int R, int C, bool add>
static void multiply_tile(int64_t K, const bfloat16* const* a, int64_t stride, const bfloat16* w, int64_t step,
                          typename V::type* tile) {
  __m512 sum[R][C];
#pragma GCC unroll 8  // or the tile stays in memory
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
      if constexpr (add) sum[r][c] = (__m512)V::load(tile + (r * C + c) * V::lanes).v;
      else sum[r][c] = _mm512_setzero_ps();
  const bfloat16* row[R];
  for (int r = 0; r < R; r++) row[r] = a[r];
  auto next = [&](int64_t at, size_t bytes) __attribute__((always_inline)) {
    __m512bh b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) __builtin_memcpy(&b[c], w + c * 2 * V::lanes, sizeof b[c]);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      int32_t pair = 0;
      __builtin_memcpy(&pair, row[r] + at, bytes);
      __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) sum[r][c] = _mm512_dpbf16_ps(sum[r][c], x, b[c]);
    }
    w += 2 * step;
  };
  int64_t k = 0, at = 0;
  for (; k + 2 <= K; k += 2, at += 2 * stride) next(at, 4);
  if (k < K) next(at, 2);
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) __builtin_memcpy(tile + (r * C + c) * V::lanes, &sum[r][c], sizeof sum[r][c]);
}

// As the pack_column of gemm.h.
template <class V>
static V pack_column(bfloat16* out, int64_t step, const bfloat16* const* unit, int units, int64_t K, int64_t depth) {
  auto watch = [](V pair, V sum) __attribute__((always_inline)) {
    const __m512bh none = (__m512bh)_mm512_setzero_si512();
    return V{(typename V::native)_mm512_dpbf16_ps((__m512)sum.v, none, (__m512bh)pair.v)};
  };
  V sum = splat<V>(0);
  auto put = [&](V pair, int64_t k) __attribute__((always_inline)) {
    __builtin_memcpy(out + k * step, &pair.v, sizeof pair.v);
    sum = watch(pair, sum);
  };
  if (depth != 1) {
    for (int64_t k = 0; k < K; k += 2)
      put(pairs<V>(unit[0] + k * depth, k + 1 < K ? unit[0] + (k + 1) * depth : nullptr, units), k);
    return sum;
  }
  const typename V::type* row[V::lanes];
  for (int l = 0; l < units; l++) row[l] = (const typename V::type*)unit[l];
  sum = turn_rows<V>(row, units, K / 2, (typename V::type*)out, step, watch);
  if (K & 1) {
    int32_t last[V::lanes] = {};
    for (int l = 0; l < units; l++) __builtin_memcpy(last + l, unit[l] + K - 1, sizeof(bfloat16));
    put(V::load((const typename V::type*)last), K - 1);
  }
  return sum;
}
