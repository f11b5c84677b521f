// The kernels for AVX-512.
#define TORCHRNN_ISA avx512
#include "isa.h"
