// Vectors: Vec<T, L> is L lanes of float or double, built on GCC and Clang vector extensions.
//
// This file and vector_math.h are included inside a namespace of their own for every instruction set. The includer has
// included <stdint.h>, <stddef.h> and, on x86, <immintrin.h> before it opened that namespace. Nothing of the C++ standard
// library may come in here: an inline function of it, compiled for AVX-512, is one the linker may also give to the baseline.
#pragma once

#ifndef TORCHRNN_VECTOR_BYTES
#if defined(__AVX512F__)
#define TORCHRNN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define TORCHRNN_VECTOR_BYTES 32
#else
#define TORCHRNN_VECTOR_BYTES 16
#endif
#endif

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TORCHRNN_AVX512 1
#else
#define TORCHRNN_AVX512 0
#endif

#define TORCHRNN_INLINE inline __attribute__((always_inline))

// What the algorithms need to know of a number type.
template <class T> struct Real;
template <> struct Real<float> {
  typedef uint32_t Bits;
  static constexpr int mantissa = 23, bias = 127;
};
template <> struct Real<double> {
  typedef uint64_t Bits;
  static constexpr int mantissa = 52, bias = 1023;
};

template <class T, int L> struct Native { typedef T type __attribute__((vector_size(L * sizeof(T)))); };
template <class T> struct Native<T, 1> { typedef T type; };

// The result of a comparison; select() takes it.
template <class T, int L> struct Mask {
  typedef decltype(typename Native<T, L>::type{} < typename Native<T, L>::type{}) native;
  native v;
  TORCHRNN_INLINE friend Mask operator&(Mask a, Mask b) { return {native(a.v & b.v)}; }
  TORCHRNN_INLINE friend Mask operator|(Mask a, Mask b) { return {native(a.v | b.v)}; }
  TORCHRNN_INLINE friend Mask operator!(Mask a) { return {native(a.v == native{})}; }
};

template <class T, int L> struct Vec {
  typedef T type;
  typedef typename Native<T, L>::type native;
  typedef typename Native<typename Real<T>::Bits, L>::type bits_type;
  static constexpr int lanes = L;
  native v;

  static TORCHRNN_INLINE Vec load(const T* p) {
    Vec a;
    __builtin_memcpy(&a.v, p, sizeof a.v);
    return a;
  }
  TORCHRNN_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }

  // The first n lanes, the others zero; nothing beyond p[n - 1] is touched, and n may be anything from 0 to L.
  static TORCHRNN_INLINE Vec load_first(const T* p, int n);
  TORCHRNN_INLINE void store_first(T* p, int n) const;

  static TORCHRNN_INLINE Vec splat(double c) {
    if constexpr (L == 1) return {T(c)};
    else return {T(c) - native{}};  // minus, since -0.0 + 0.0 would lose the sign
  }
  static TORCHRNN_INLINE Vec from_bits(bits_type b) {
    Vec a;
    __builtin_memcpy(&a.v, &b, sizeof b);
    return a;
  }
  TORCHRNN_INLINE bits_type bits() const {
    bits_type b;
    __builtin_memcpy(&b, &v, sizeof b);
    return b;
  }

  TORCHRNN_INLINE friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  TORCHRNN_INLINE friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  TORCHRNN_INLINE friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  TORCHRNN_INLINE friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  TORCHRNN_INLINE friend Vec operator-(Vec a) { return {-a.v}; }
  TORCHRNN_INLINE Vec& operator+=(Vec b) { v += b.v; return *this; }
  TORCHRNN_INLINE Vec& operator-=(Vec b) { v -= b.v; return *this; }
  TORCHRNN_INLINE Vec& operator*=(Vec b) { v *= b.v; return *this; }
  TORCHRNN_INLINE friend Mask<T, L> operator<(Vec a, Vec b) { return {a.v < b.v}; }
  TORCHRNN_INLINE friend Mask<T, L> operator<=(Vec a, Vec b) { return {a.v <= b.v}; }
  TORCHRNN_INLINE friend Mask<T, L> operator>(Vec a, Vec b) { return {a.v > b.v}; }
  TORCHRNN_INLINE friend Mask<T, L> operator>=(Vec a, Vec b) { return {a.v >= b.v}; }
  TORCHRNN_INLINE friend Mask<T, L> operator==(Vec a, Vec b) { return {a.v == b.v}; }
  TORCHRNN_INLINE friend Mask<T, L> operator!=(Vec a, Vec b) { return {a.v != b.v}; }
};

template <class V> static TORCHRNN_INLINE V splat(double c) { return V::splat(c); }

template <class T, int L> static TORCHRNN_INLINE Vec<T, L> select(Mask<T, L> m, Vec<T, L> a, Vec<T, L> b) {
  return {m.v ? a.v : b.v};
}

// One expression, so that Clang's default (contract within an expression) fuses it as GCC's does.
template <class T, int L> static TORCHRNN_INLINE Vec<T, L> fma(Vec<T, L> a, Vec<T, L> b, Vec<T, L> c) {
  return {a.v * b.v + c.v};
}

// a > b ? a : b and a < b ? a : b, one instruction each; where either is NaN the result is b.
template <class V> static TORCHRNN_INLINE V greater_or_second(V a, V b) {
#if TORCHRNN_AVX512  // GCC 12 makes a comparison and a blend of it at this width
  if constexpr (sizeof a.v == 64 && sizeof(typename V::type) == 4)
    return {(typename V::native)_mm512_maskz_max_ps(-1, (__m512)a.v, (__m512)b.v)};
  if constexpr (sizeof a.v == 64 && sizeof(typename V::type) == 8)
    return {(typename V::native)_mm512_maskz_max_pd(-1, (__m512d)a.v, (__m512d)b.v)};
#endif
  return {a.v > b.v ? a.v : b.v};
}
template <class V> static TORCHRNN_INLINE V less_or_second(V a, V b) {
#if TORCHRNN_AVX512
  if constexpr (sizeof a.v == 64 && sizeof(typename V::type) == 4)
    return {(typename V::native)_mm512_maskz_min_ps(-1, (__m512)a.v, (__m512)b.v)};
  if constexpr (sizeof a.v == 64 && sizeof(typename V::type) == 8)
    return {(typename V::native)_mm512_maskz_min_pd(-1, (__m512d)a.v, (__m512d)b.v)};
#endif
  return {a.v < b.v ? a.v : b.v};
}

// x raised to lo, lowered to hi; NaN stays NaN because of the order of the operands.
template <class V> static TORCHRNN_INLINE V at_least(V x, double lo) { return greater_or_second(splat<V>(lo), x); }
template <class V> static TORCHRNN_INLINE V at_most(V x, double hi) { return less_or_second(splat<V>(hi), x); }

// As torch.maximum and torch.minimum: NaN if either is.
template <class T, int L> static TORCHRNN_INLINE Vec<T, L> max(Vec<T, L> a, Vec<T, L> b) {
  return select(a == a, greater_or_second(a, b), a);
}
template <class T, int L> static TORCHRNN_INLINE Vec<T, L> min(Vec<T, L> a, Vec<T, L> b) {
  return select(a == a, less_or_second(a, b), a);
}

template <class V> static TORCHRNN_INLINE V abs(V a) {
  typedef typename Real<typename V::type>::Bits Bits;
  return V::from_bits(a.bits() & (Bits(~Bits(0)) >> 1));
}

template <class V> static TORCHRNN_INLINE V copysign(V magnitude, V sign) {  // magnitude >= 0
  typedef typename Real<typename V::type>::Bits Bits;
  return V::from_bits(magnitude.bits() | (sign.bits() & ~(Bits(~Bits(0)) >> 1)));
}

template <class T, int L> static TORCHRNN_INLINE Vec<T, L> sqrt(Vec<T, L> a) {
  if constexpr (L == 1) return {T(sizeof(T) == 4 ? __builtin_sqrtf(float(a.v)) : __builtin_sqrt(double(a.v)))};
  else {
#if TORCHRNN_AVX512
    if constexpr (sizeof a.v == 64 && sizeof(T) == 4) return {(typename Vec<T, L>::native)_mm512_maskz_sqrt_ps(-1, (__m512)a.v)};
    if constexpr (sizeof a.v == 64 && sizeof(T) == 8) return {(typename Vec<T, L>::native)_mm512_maskz_sqrt_pd(-1, (__m512d)a.v)};
#endif
#if defined(__AVX__)
    if constexpr (sizeof a.v == 32 && sizeof(T) == 4) return {(typename Vec<T, L>::native)_mm256_sqrt_ps((__m256)a.v)};
    if constexpr (sizeof a.v == 32 && sizeof(T) == 8) return {(typename Vec<T, L>::native)_mm256_sqrt_pd((__m256d)a.v)};
#endif
#if defined(__SSE2__)
    if constexpr (sizeof a.v == 16 && sizeof(T) == 4) return {(typename Vec<T, L>::native)_mm_sqrt_ps((__m128)a.v)};
    if constexpr (sizeof a.v == 16 && sizeof(T) == 8) return {(typename Vec<T, L>::native)_mm_sqrt_pd((__m128d)a.v)};
#endif
    for (int i = 0; i < L; ++i) a.v[i] = sizeof(T) == 4 ? __builtin_sqrtf(float(a.v[i])) : __builtin_sqrt(double(a.v[i]));
    return a;
  }
}

template <class T, int L> TORCHRNN_INLINE Vec<T, L> Vec<T, L>::load_first(const T* p, int n) {
  Vec a;
  T lane[L] = {};
  for (int i = 0; i < n; ++i) lane[i] = p[i];
  __builtin_memcpy(&a.v, lane, sizeof a.v);
  return a;
}
template <class T, int L> TORCHRNN_INLINE void Vec<T, L>::store_first(T* p, int n) const {
  T lane[L];
  __builtin_memcpy(lane, &v, sizeof v);
  for (int i = 0; i < n; ++i) p[i] = lane[i];
}

#if TORCHRNN_AVX512
// Lanes that a mask leaves out are not read, written or faulted on.
#define TORCHRNN_PARTIAL(T, L, BITS, MASK, SUFFIX)                                                     \
  template <> TORCHRNN_INLINE Vec<T, L> Vec<T, L>::load_first(const T* p, int n) {                     \
    return {(native)_mm##BITS##_maskz_loadu_##SUFFIX((MASK)((1u << n) - 1), p)};                       \
  }                                                                                                    \
  template <> TORCHRNN_INLINE void Vec<T, L>::store_first(T* p, int n) const {                         \
    _mm##BITS##_mask_storeu_##SUFFIX(p, (MASK)((1u << n) - 1), (decltype(_mm##BITS##_setzero_##SUFFIX()))v); \
  }
TORCHRNN_PARTIAL(float, 16, 512, __mmask16, ps)
TORCHRNN_PARTIAL(float, 8, 256, __mmask8, ps)
TORCHRNN_PARTIAL(float, 4, , __mmask8, ps)
TORCHRNN_PARTIAL(double, 8, 512, __mmask8, pd)
TORCHRNN_PARTIAL(double, 4, 256, __mmask8, pd)
TORCHRNN_PARTIAL(double, 2, , __mmask8, pd)
#undef TORCHRNN_PARTIAL
#endif

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

// Past the caches, for results larger than those: a line is not read before it is written. After the last, `after_past`.
template <class V>
static TORCHRNN_INLINE void store_past(V value, typename V::type* to) {
#if defined(__x86_64__)
  constexpr int bytes = sizeof value.v;
  if (!((uintptr_t)to % bytes)) {
#if TORCHRNN_VECTOR_BYTES == 64
    if constexpr (bytes == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)value.v);
#endif
#if TORCHRNN_VECTOR_BYTES >= 32
    if constexpr (bytes == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)value.v);
#endif
    if constexpr (bytes == 16) return _mm_stream_si128((__m128i*)to, (__m128i)value.v);
  }
#endif
  value.store(to);
}
static inline void after_past() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
