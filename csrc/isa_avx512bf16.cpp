// The kernels for bfloat16 of AVX-512 with its bfloat16 instructions.
#define TORCHRNN_ISA avx512bf16
#define TORCHRNN_NARROW 1
#include "isa.h"
