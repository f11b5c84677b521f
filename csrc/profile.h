// Where the time of a call goes: nanoseconds by phase, counted while somebody asks.
#pragma once

#include <stdint.h>

namespace torchrnn {

// In the order of PHASE_NAMES in profile.cpp.
enum Phase { PACKING, X_PART, SWEEP_FORWARD, SWEEP_BACKWARD, WEIGHT_GRADIENTS, INPUT_GRADIENTS, PHASES };

struct Profile {
  int64_t nanoseconds[PHASES];
  int64_t last;  // when the last lap ended
};

// This thread's, or null: nobody asks, or the call may have several threads, whose times would not add up.
Profile* profile();
void begin(Profile&);       // of the laps; neither is inlined, see TORCHRNN_HERE in layer.h
void lap(Profile&, Phase);  // counts what has passed since the last one

}  // namespace torchrnn
