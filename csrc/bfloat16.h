// The number type bfloat16 as it stands in memory: a float's upper half. Nothing is computed in it.
#pragma once

#include <stdint.h>

// compiled under several instruction sets: inlined, so that none of them is linked in another's place
#define TORCHRNN_HERE inline __attribute__((always_inline))

namespace torchrnn {

struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;
  // The nearest, of two equally near the even one; NaN stays NaN.
  TORCHRNN_HERE bfloat16(float x) {
    uint32_t whole;
    __builtin_memcpy(&whole, &x, sizeof whole);
    bits = (uint16_t)(x != x ? whole >> 16 | 0x40 : (whole + 0x7fff + (whole >> 16 & 1)) >> 16);
  }
  TORCHRNN_HERE operator float() const {
    uint32_t whole = (uint32_t)bits << 16;
    float x;
    __builtin_memcpy(&x, &whole, sizeof x);
    return x;
  }
};

}  // namespace torchrnn
