// exp, expm1, log, log1p, tanh, sigmoid, softplus, relu, sign on the vectors of simd.h: within 2 ulp for float and 4 for
// double over the whole range, gradual underflow included, with or without fused multiply-add.
//
// The polynomials are minimax fits made with mpmath: Lawson's iteration (weighted least squares on 120 Chebyshev nodes, each
// weight multiplied by its node's error until the errors are level), then the lowest coefficient is rounded to T and the
// others are fitted again, until all are rounded:
//   X = [h * cos(pi * (2 * i + 1) / 240) for i in range(120)];  lam = [1] * 120;  residual = [f(x) for x in X]
//   for k in range(len(powers)):
//       for _ in range(25):
//           c = least_squares(X, residual, weights=[l * w(x)**2 for l, x in zip(lam, X)], powers=powers[k:])
//           lam = [l * abs(w(x) * (r - poly(c, x))) for l, x, r in zip(lam, X, residual)]
//       fixed.append(T(c[0]));  residual = [r - fixed[-1] * x**powers[k] for x, r in zip(X, residual)]
#pragma once

// c0 + x (c1 + x (c2 + …))
template <class V> static TORCHRNN_INLINE V horner(V, double c) { return splat<V>(c); }
template <class V, class... C> static TORCHRNN_INLINE V horner(V x, double c, C... more) {
  return fma(x, horner(x, more...), splat<V>(c));
}

// a / b for 2^-100 < |b| < 2^100, within 0.51 ulp. On AVX-512 an estimate and one correction of the quotient beat the divider.
template <class T, int L> static TORCHRNN_INLINE Vec<T, L> quotient(Vec<T, L> a, Vec<T, L> b) {
#if TORCHRNN_AVX512
  typedef Vec<T, L> V;
  if constexpr (sizeof(T) == 4 && (L == 16 || L == 8 || L == 4 || L == 1)) {
    V r;
    if constexpr (L == 16) r.v = (typename V::native)_mm512_rcp14_ps((__m512)b.v);
    else if constexpr (L == 8) r.v = (typename V::native)_mm256_rcp14_ps((__m256)b.v);
    else if constexpr (L == 4) r.v = (typename V::native)_mm_rcp14_ps((__m128)b.v);
    else r.v = _mm_cvtss_f32(_mm_rcp14_ps(_mm_set_ss(b.v)));
    V q = a * r;
    return fma(fma(-b, q, a), r, q);
  }
#endif
  return a / b;
}

// x = n ln 2 + r with n whole and |r| <= ln 2 / 2. Adding 1.5 * 2^mantissa rounds to a whole number and leaves n, plus a
// bias of the caller's choice, in the low bits, from where a shift by `mantissa` makes it an exponent.
template <class V> struct Reduced {
  V r;
  typename V::bits_type t;
};

template <class V> static constexpr double round_magic = 1.5 * double(uint64_t(1) << Real<typename V::type>::mantissa);

template <class V> static TORCHRNN_INLINE Reduced<V> reduce(V x, double bias) {
  constexpr bool f = sizeof(typename V::type) == 4;
  V magic = splat<V>(round_magic<V> + bias);
  V t = fma(x, splat<V>(1.4426950408889634), magic), n = t - magic;
  // ln 2 in two parts, the first short enough (15 and 41 bits) that its product with n is exact without fma too
  V r = fma(n, splat<V>(f ? -0x1.62e4p-1 : -0x1.62e42fefa38p-1), x);
  r = fma(n, splat<V>(f ? -0x1.7f7d1cf79abcap-20 : -0x1.ef35793c7673p-45), r);
  return {r, t.bits()};
}

// q with expm1(r) = r + r^2 q on |r| <= 0.3467, relative error of expm1 2^-26.1 (float) and 2^-55.5 (double):
// f(r) = (expm1(r) - r) / r^2, w(r) = |r^2 / expm1(r)|, powers 0..4 and 0..9. With r = scale * s, of s.
template <class V> static TORCHRNN_INLINE V expm1_tail(V s, double scale = 1) {
  double a = scale, b = a * a, c = b * a, d = b * b;
  if constexpr (sizeof(typename V::type) == 4)
    return horner(s, 4.999999702e-01, 1.666654646e-01 * a, 4.166743904e-02 * b, 8.366256952e-03 * c, 1.387031516e-03 * d);
  else
    return horner(s, 5.00000000000000555e-01, 1.66666666666666241e-01 * a, 4.16666666665738566e-02 * b,
                  8.33333333336649072e-03 * c, 1.38888889322863257e-03 * d, 1.98412697700770012e-04 * d * a,
                  2.48015045567299218e-05 * d * b, 2.75573612045402394e-06 * d * c, 2.76262853129453885e-07 * d * d,
                  2.50686111137055269e-08 * d * d * a);
}

template <class V> static TORCHRNN_INLINE V exp_of_rest(V r) {
  return fma(r, fma(r, expm1_tail(r), splat<V>(1)), splat<V>(1));
}

template <class V> static TORCHRNN_INLINE V exp(V x) {
  constexpr bool f = sizeof(typename V::type) == 4;
  constexpr int m = Real<typename V::type>::mantissa, bias = Real<typename V::type>::bias;
  // 2^n in two factors: n reaches from the last denormal to beyond the largest number
  constexpr int shift = 2 * bias + 2;
  Reduced<V> a = reduce(at_most(at_least(x, f ? -104. : -746.), f ? 89. : 710.), shift);
  auto u = a.t & ((typename Real<typename V::type>::Bits(1) << (m - 1)) - 1), h = u >> 1;
  V up = V::from_bits((h - 1) << m), rest = V::from_bits((u - h - 1) << m);
  return exp_of_rest(a.r) * up * rest;
}

// 1 / (1 + e^-x) with both terms times S = 2^-(bias/2): e^-x then has room for all the x whose result is not yet zero, and
// the division itself underflows gradually.
template <class V> static TORCHRNN_INLINE V sigmoid(V x) {
  constexpr bool f = sizeof(typename V::type) == 4;
  constexpr int m = Real<typename V::type>::mantissa, bias = Real<typename V::type>::bias;
  const double s = f ? 0x1p-64 : 0x1p-512;
  Reduced<V> a = reduce(at_most(at_least(-x, f ? -20. : -40.), f ? 104. : 746.), bias - (f ? 64 : 512));
  V S = splat<V>(s), d = fma(exp_of_rest(a.r), V::from_bits(a.t << m), S);
  return quotient(S, d);
}

// With e = e^(-2|x|) = 2^n e^(-2r) and G = (1 - e) / 2: tanh|x| = G / (1 - G). G is put together from 1 - e^(-2r), so nothing
// cancels near 0. One term of ln 2 is enough (T's ln 2 is right to 2^-29 and 2^-55, and its error is multiplied by e).
template <class V> static TORCHRNN_INLINE V tanh(V x) {
  constexpr bool f = sizeof(typename V::type) == 4;
  constexpr int m = Real<typename V::type>::mantissa, bias = Real<typename V::type>::bias;
  V a = at_most(abs(x), f ? 10. : 22.);
  V magic = splat<V>(round_magic<V> + bias);
  V t = fma(a, splat<V>(-2.8853900817779268), magic), n = t - magic;
  V r = fma(n, splat<V>(0.34657359027997264), a);
  V s = V::from_bits(t.bits() << m), half = splat<V>(0.5);
  V g = fma(r * r, splat<V>(-2) * expm1_tail(r, -2), r);
  V G = fma(s, g, fma(s, -half, half));
  return copysign(quotient(G, splat<V>(1) - G), x);
}

template <class V> static TORCHRNN_INLINE V relu(V x) { return at_least(x, 0); }
