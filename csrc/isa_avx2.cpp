// The kernels for AVX2 and FMA.
#define TORCHRNN_ISA avx2
#include "isa.h"
