// Memory for large tensors that nobody resizes, lent again once the tensor in it is gone.
//
// What malloc hands out beyond some megabytes it takes from the system at each call, which zeroes it page by page while
// it is first written: as long as filling it. Blocks that came back are filled as they are. While they wait the system
// may take their pages, for nobody reads what they held.
#pragma once

#include <cstddef>
#include <cstdint>

namespace torchrnn {

struct Block {
  void* data;
  size_t size;
  int forks;  // of this process before it was made
};

// Bytes of what is lent: of what lives for a call or a step malloc keeps more.
constexpr size_t LARGE_RESULT = size_t(8) << 20, LARGE_SCRATCH = size_t(32) << 20;

// A block of at least so many bytes, or null where the system has none to lend.
Block* lend(size_t bytes);
void give_back(Block* block);

int64_t waiting_memory();  // bytes of blocks that wait
void release_memory();     // gives them to the system

}  // namespace torchrnn
