// The options of a cell's equations as functions on vectors: the activation, the clip of a state, and their derivatives.
// The default's way is inlined; the others are one call and one switch, which is the same for every vector of a layer.
#pragma once

template <class V> static __attribute__((noinline)) V other_activation(const Options& options, V x) {
  switch (options.activation) {
    case RELU: return relu(x);
    case SIGMOID: return sigmoid(x);
    case SOFTSIGN: return x / (splat<V>(1) + abs(x));
    case ELU: return select(x > splat<V>(0), x, expm1(x));
    default: return x;
  }
}
template <class V> static TORCHRNN_INLINE V activate(const Options& options, V x) {
  return options.activation == TANH ? tanh(x) : other_activation(options, x);
}

// The gradient of x from that of y = activate(x).
template <class V> static __attribute__((noinline)) V other_backward(const Options& options, V dy, V y) {
  V zero = splat<V>(0), one = splat<V>(1), rest = one - abs(y);
  switch (options.activation) {
    case RELU: return select(y <= zero, zero, dy);
    case SIGMOID: return dy * y * (one - y);
    case SOFTSIGN: return dy * rest * rest;
    case ELU: return select(y > zero, dy, dy * (y + one));
    default: return dy;
  }
}
template <class V> static TORCHRNN_INLINE V activate_backward(const Options& options, V dy, V y) {
  return options.activation == TANH ? dy * (splat<V>(1) - y * y) : other_backward(options, dy, y);
}

template <class V> static TORCHRNN_INLINE V clip(const Options& options, V x) {
  return options.limit < __builtin_inf() ? at_most(at_least(x, -options.limit), options.limit) : x;
}

// The gradient of x from that of clip(x), as torch.clamp has it: NaN is not within the limit.
template <class V> static TORCHRNN_INLINE V clip_backward(const Options& options, V dy, V x) {
  if (!(options.limit < __builtin_inf())) return dy;
  V limit = splat<V>(options.limit);
  return select((x >= -limit) & (x <= limit), dy, splat<V>(0));
}
