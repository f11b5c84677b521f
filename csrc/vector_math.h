// exp, expm1, log, log1p, tanh, sigmoid, softplus, relu, sign on the vectors of simd.h: within 2 ulp for float and 4 for
// double over the whole range, gradual underflow included, with or without fused multiply-add.
//
// The polynomials are minimax fits made with mpmath: Lawson's iteration (weighted least squares on 120 Chebyshev nodes of the
// interval, each weight multiplied by its node's error until the errors are level), then the lowest coefficient is rounded to
// T and the others are fitted again, until all are rounded:
//   residual = [f(x) for x in X]
//   for k in range(len(powers)):
//       lam = [1] * 120
//       for _ in range(25):
//           c = least_squares(X, residual, weights=[l * w(x)**2 for l, x in zip(lam, X)], powers=powers[k:])
//           lam = [l * abs(w(x) * (r - poly(c, x))) for l, x, r in zip(lam, X, residual)]
//       fixed.append(T(c[0]));  residual = [r - fixed[-1] * x**powers[k] for x, r in zip(X, residual)]
#pragma once

// c0 + c1 x + c2 x^2 + …, w = x^2: Horner's rule in x^2 on pairs, half as long a chain of dependent steps.
template <class V> static TORCHRNN_INLINE V poly(V, V, double c0) { return splat<V>(c0); }
template <class V> static TORCHRNN_INLINE V poly(V x, V, double c0, double c1) {
  return fma(x, splat<V>(c1), splat<V>(c0));
}
template <class V, class... C> static TORCHRNN_INLINE V poly(V x, V w, double c0, double c1, C... more) {
  return fma(w, poly(x, w, more...), poly(x, w, c0, c1));
}

// Adding 1.5 * 2^mantissa rounds to a whole number n and leaves it, plus a bias of the caller's choice, in the low bits, from
// where a shift by `mantissa` makes it an exponent.
template <class T> struct Rounding {
  static constexpr int mantissa = Real<T>::mantissa, bias = Real<T>::bias;
  static constexpr double magic = 1.5 * double(uint64_t(1) << mantissa);
};

// x = sign * n ln 2 + r with |r| <= ln 2 / 2; n stands in t, biased.
template <class V> struct Reduced {
  V r;
  typename V::bits_type t;
};
template <class V> static TORCHRNN_INLINE Reduced<V> reduce(V x, double sign, double bias) {
  constexpr bool f = sizeof(typename V::type) == 4;
  V magic = splat<V>(Rounding<typename V::type>::magic + bias);
  V t = fma(x, splat<V>(sign * 1.4426950408889634), magic), n = t - magic;
  // ln 2 in two parts, the first short enough (15 and 42 bits) that its product with n is exact without fma too
  V r = fma(n, splat<V>(sign * (f ? -0x1.62e4p-1 : -0x1.62e42fefa38p-1)), x);
  r = fma(n, splat<V>(sign * (f ? -0x1.7f7d1cf79abcap-20 : -0x1.ef35793c7673p-45)), r);
  return {r, t.bits()};
}

// q with expm1(r) = r + r^2 q on |r| <= 0.3467, relative error of expm1 2^-26.1 (float) and 2^-55.6 (double):
// f(r) = (expm1(r) - r) / r^2, w(r) = |r^2 / expm1(r)|, powers 0..4 and 0..9. The result is factor * q(scale * x), w = x^2.
template <class V> static TORCHRNN_INLINE V expm1_tail(V x, V w, double scale, double factor = 1) {
  double a = scale, b = a * a, c = b * a, d = b * b, k = factor;
  if constexpr (sizeof(typename V::type) == 4)
    return poly(x, w, k * 4.999999702e-01, k * a * 1.666654646e-01, k * b * 4.166743904e-02, k * c * 8.366256952e-03,
                k * d * 1.387031516e-03);
  else
    return poly(x, w, k * 5.00000000000000555e-01, k * a * 1.66666666666666241e-01, k * b * 4.16666666665738566e-02,
                k * c * 8.33333333336649072e-03, k * d * 1.38888889322863257e-03, k * d * a * 1.98412697700770012e-04,
                k * d * b * 2.48015045567299218e-05, k * d * c * 2.75573612045402394e-06,
                k * d * d * 2.76262853129453885e-07, k * d * d * a * 2.50686111137055269e-08);
}

template <class V> static TORCHRNN_INLINE V exp(V x) {
  typedef Rounding<typename V::type> R;
  constexpr bool f = sizeof(typename V::type) == 4;
  // 2^n in two factors, since n reaches from the last denormal to beyond the largest number
  Reduced<V> a = reduce(at_most(at_least(x, f ? -104. : -746.), f ? 89. : 710.), 1, 2 * R::bias + 2);
  auto both = a.t & ((typename Real<typename V::type>::Bits(1) << (R::mantissa - 1)) - 1), half = both >> 1;
  V s1 = V::from_bits((half - 1) << R::mantissa), s2 = V::from_bits((both - half - 1) << R::mantissa);
  V p = fma(a.r, fma(a.r, expm1_tail(a.r, a.r * a.r, 1), splat<V>(1)), splat<V>(1));
  return p * s1 * s2;
}

template <class V> static TORCHRNN_INLINE V expm1(V x) {
  typedef Rounding<typename V::type> R;
  constexpr bool f = sizeof(typename V::type) == 4;
  // with 2^(n-1) in place of 2^n, which would overflow before the result does
  Reduced<V> a = reduce(at_most(at_least(x, f ? -20. : -40.), f ? 88.75 : 709.8), 1, R::bias - 1);
  V w = a.r * a.r, h = fma(w, expm1_tail(a.r, w, 1), a.r), s = V::from_bits(a.t << R::mantissa);
  V y = fma(s, h, s - splat<V>(0.5));
  return select(abs(x) < splat<V>(f ? 0x1p-30 : 0x1p-60), x, y + y);  // denormals and -0
}

// 1 / (1 + e^-x) with both terms times S = 2^-64 (2^-512): e^-x then has room for every x whose result is not yet zero, and the
// division itself underflows gradually. e^-x = s (1 + h) joins the smaller of s and S first: where the sum is just above a
// power of two, and its rounding weighs most, it is rounded only once.
template <class V> static TORCHRNN_INLINE V sigmoid(V x) {
  typedef Rounding<typename V::type> R;
  constexpr bool f = sizeof(typename V::type) == 4;
  Reduced<V> a = reduce(at_most(at_least(x, f ? -104. : -746.), f ? 20. : 40.), -1, R::bias - (f ? 64 : 512));
  V S = splat<V>(f ? 0x1p-64 : 0x1p-512), s = V::from_bits(a.t << R::mantissa);
  V w = a.r * a.r, h = fma(w, expm1_tail(a.r, w, -1), -a.r);
  return S / (fma(s, h, less_or_second(s, S)) + greater_or_second(s, S));
}

// With e = e^(-2|x|) = s e^(-2r) and g = (1 - e^(-2r)) / 2: tanh|x| = (1 - e) / (1 + e), both halved and put together from g, so
// that nothing cancels near 0. One term of ln 2 is enough (T's is right to 2^-29 and 2^-55, and its error is multiplied by e).
template <class V> static TORCHRNN_INLINE V tanh(V x) {
  typedef Rounding<typename V::type> R;
  constexpr bool f = sizeof(typename V::type) == 4;
  V a = at_most(abs(x), f ? 10. : 22.), magic = splat<V>(R::magic + R::bias), half = splat<V>(0.5);
  V t = fma(a, splat<V>(-2.8853900817779268), magic), n = t - magic;
  V r = fma(n, splat<V>(0.34657359027997264), a), s = V::from_bits(t.bits() << R::mantissa);
  V w = r * r, g = fma(w, expm1_tail(r, w, -2, -2), r);
  V numerator = fma(s, g, fma(s, -half, half)), denominator = fma(-s, g, fma(s, half, half));
  return copysign(numerator / denominator, x);
}

// log(u (1 + c)) for normal u > 0 and |c| below an ulp: u = 2^k (1 + y) with 1 + y from sqrt(1/2) to sqrt(2), z = y / (2 + y),
// log(1 + y) = y - y^2/2 + z (y^2/2 + z^2 R(z^2)), where z^2 R(z^2) = 2 atanh(z) / z - 2 has relative error 2^-30 (float) and
// 2^-59 (double) of 2: f(v) = (2 atanh(sqrt v) / sqrt v - 2) / v, w(v) = v / 2, v from 0 to 0.02944, powers 0..2 and 0..6.
template <class V> static TORCHRNN_INLINE V log_of(V u, V c) {
  typedef Rounding<typename V::type> R;
  typedef typename Real<typename V::type>::Bits Bits;
  constexpr bool f = sizeof(typename V::type) == 4;
  constexpr Bits root = f ? Bits(0x3f3504f3) : Bits(0x3fe6a09e667f3bcd), one = Bits(R::bias) << R::mantissa;
  auto b = u.bits() + (one - root);
  V y = V::from_bits((b & ((Bits(1) << R::mantissa) - 1)) + root) - splat<V>(1);
  const double whole = double(uint64_t(1) << R::mantissa);  // an integer k in the low bits of this number is k + whole
  V k = V::from_bits((b >> R::mantissa) | (Bits(R::bias + R::mantissa) << R::mantissa)) - splat<V>(whole + R::bias);
  V half = splat<V>(0.5) * y * y, z = y / (splat<V>(2) + y), v = z * z, v2 = v * v, p;
  if constexpr (f) p = poly(v, v2, 6.666677594e-01, 3.997758329e-01, 2.987080514e-01);
  else p = poly(v, v2, 6.66666666666673513e-01, 3.99999999994107514e-01, 2.85714287431405256e-01, 2.22221985043957848e-01,
                1.81835675846800410e-01, 1.53139732215790497e-01, 1.47966770790268348e-01);
  V low = fma(k, splat<V>(f ? 0x1.7f7d1cf79abcap-20 : 0x1.ef35793c7673p-45), fma(z, fma(v, p, half), c));
  return fma(k, splat<V>(f ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1), y - (half - low));
}

// Of y = log(x), right for finite x > 0, the answers for all other x.
template <class V> static TORCHRNN_INLINE V log_elsewhere(V x, V y) {
  V inf = splat<V>(__builtin_inf()), zero = splat<V>(0);
  return select(x > zero, select(x < inf, y, x), select(x == zero, -inf, splat<V>(__builtin_nan(""))));
}

template <class V> static TORCHRNN_INLINE V log(V x) {
  constexpr bool f = sizeof(typename V::type) == 4;
  auto denormal = x < splat<V>(f ? 0x1p-126 : 0x1p-1022);
  V zero = splat<V>(0), u = select(denormal, x * splat<V>(f ? 0x1p32 : 0x1p64), x);
  V y = log_of(u, zero), shifted = y - splat<V>((f ? 32 : 64) * 0.6931471805599453);
  return log_elsewhere(x, select(denormal, shifted, y));
}

template <class V> static TORCHRNN_INLINE V log1p(V x) {
  constexpr bool f = sizeof(typename V::type) == 4;
  V one = splat<V>(1), u = one + x;
  V lost = select(x < one, x - (u - one), one - (u - x));  // what rounding 1 + x left out
  V y = log_elsewhere(u, log_of(u, lost / u));
  return select(abs(x) < splat<V>(f ? 0x1p-30 : 0x1p-60), x, y);  // denormals and -0
}

// As torch's default softplus, whose threshold is 20.
template <class V> static TORCHRNN_INLINE V softplus(V x) {
  V y = at_least(x, 0) + log1p(exp(-abs(x)));
  return select(x > splat<V>(20), x, y);
}

template <class V> static TORCHRNN_INLINE V relu(V x) { return at_least(x, 0); }

// As torch.sign: zero for NaN and for both zeros.
template <class V> static TORCHRNN_INLINE V sign(V x) {
  V zero = splat<V>(0), one = splat<V>(1);
  return select(x > zero, one, select(x < zero, -one, zero));
}
