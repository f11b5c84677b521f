// The kernels for any processor.
#define TORCHRNN_ISA baseline
#include "isa.h"
