#include "memory.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>
#endif

namespace torchrnn {

// The sanitizer must see where a tensor ends.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)

namespace {

constexpr size_t PAGE = size_t(1) << 21;   // large pages, where the system has them
constexpr size_t MOST = size_t(1) << 30;   // bytes that wait, at most
constexpr size_t LARGER = 4;               // a block may be so many times what is asked for

void destroy(Block* block) {
  munmap(block->data, block->size);
  delete block;
}

Block* make(size_t size) {
  char* mapped = (char*)mmap(nullptr, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == (char*)MAP_FAILED) return nullptr;
  size_t before = (PAGE - (uintptr_t)mapped % PAGE) % PAGE;  // what lies around the block goes back at once
  if (before) munmap(mapped, before);
  munmap(mapped + before + size, PAGE - before);
  madvise(mapped + before, size, MADV_HUGEPAGE);
  return new Block{mapped + before, size};
}

// All blocks of the process: never destroyed, since tensors may outlive what is.
class Memory {
 public:
  static Memory& shared() {
    static Memory& only = *new Memory;
    return only;
  }

  Block* take(size_t size) {
    std::lock_guard lock(busy_);
    auto best = waiting_.end();
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at)
      if ((*at)->size >= size && (*at)->size <= LARGER * size && (best == waiting_.end() || (*at)->size <= (*best)->size))
        best = at;
    Block* block = best == waiting_.end() ? make(size) : *best;
    if (!block) return nullptr;
    if (best != waiting_.end()) waiting_.erase(best), waits_ -= block->size;
    lent_ += block->size;
    most_lent_ = std::max(most_lent_, lent_);
    keep(most_lent_ - lent_);
    return block;
  }

  void back(Block* block) {
#ifdef MADV_FREE
    madvise(block->data, block->size, MADV_FREE);
#endif
    std::lock_guard lock(busy_);
    lent_ -= block->size, waits_ += block->size;
    waiting_.push_back(block);
    keep(MOST);
  }

  size_t waits() {
    std::lock_guard lock(busy_);
    return waits_;
  }
  void release() {
    std::lock_guard lock(busy_);
    keep(0);
    most_lent_ = lent_;
  }

 private:
  // A child of fork must find the lock open.
  Memory() {
    pthread_atfork([] { shared().busy_.lock(); }, [] { shared().busy_.unlock(); }, [] { shared().busy_.unlock(); });
  }
  // Those that have waited longest go, until at most so many bytes wait: lent and waiting together are never more than
  // what was lent at once.
  void keep(size_t bytes) {
    while (waits_ > bytes) {
      waits_ -= waiting_.front()->size;
      destroy(waiting_.front());
      waiting_.erase(waiting_.begin());
    }
  }

  std::mutex busy_;
  std::vector<Block*> waiting_;  // in the order in which they came back
  size_t waits_ = 0, lent_ = 0, most_lent_ = 0;
};

}  // namespace

Block* lend(size_t bytes) { return Memory::shared().take((bytes + PAGE - 1) / PAGE * PAGE); }
void give_back(Block* block) { Memory::shared().back(block); }
int64_t waiting_memory() { return (int64_t)Memory::shared().waits(); }
void release_memory() { Memory::shared().release(); }

#else

Block* lend(size_t) { return nullptr; }
void give_back(Block*) {}
int64_t waiting_memory() { return 0; }
void release_memory() {}

#endif

}  // namespace torchrnn
