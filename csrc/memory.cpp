#include "memory.h"

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <mutex>
#include <vector>
#endif

namespace torchrnn {

// The sanitizer must see where a tensor ends.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)

namespace {

constexpr size_t PAGE = size_t(1) << 21;  // large pages, where the system has them

// Bytes that wait, at most: where the process may not have more than so much of addresses, few.
size_t most() {
  rlimit space;
  bool limited = !getrlimit(RLIMIT_AS, &space) && space.rlim_cur != RLIM_INFINITY;
  return limited ? size_t(1) << 26 : size_t(1) << 30;
}

struct Blocks : std::vector<Block*> {
  ~Blocks() {
    for (Block* block : *this) {
      munmap(block->data, block->size);
      delete block;
    }
  }
};

// All blocks of the process: never destroyed, since tensors may outlive what is.
class Memory {
 public:
  static Memory& shared() {
    static Memory& only = *new Memory;
    return only;
  }

  Block* take(size_t size) {
    Block* block = found(size);
    if (!block) block = made(size);
    if (!block && waits()) release(), block = made(size);
    return block;
  }

  void back(Block* block) {
#ifdef MADV_FREE
    madvise(block->data, block->size, MADV_FREE);
#endif
    Blocks gone;  // unmapped when the lock is open again
    std::lock_guard lock(busy_);
    lent_ -= block->size;
    if (block->forks != forks_) return gone.push_back(block);
    waits_ += block->size;
    waiting_.push_back(block);
    keep(most(), gone);
  }

  size_t waits() {
    std::lock_guard lock(busy_);
    return waits_;
  }

  void release() {
    Blocks gone;
    std::lock_guard lock(busy_);
    keep(0, gone);
    most_lent_ = lent_;
  }

 private:
  // A child of fork must find the lock open. Blocks do not outlive a fork: what parent and child share is copied in
  // small pages.
  Memory() {
    auto open = [] { shared().busy_.unlock(); };
    pthread_atfork([] { shared().fork(); }, open, open);
  }
  void fork() {
    Blocks gone;
    busy_.lock();
    keep(0, gone);
    forks_++;
  }

  // The smallest that waits and is large enough, at most half as large again.
  Block* found(size_t size) {
    std::lock_guard lock(busy_);
    auto best = waiting_.end();
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at)
      if ((*at)->size >= size && (*at)->size - size <= size / 2 && (best == waiting_.end() || (*at)->size <= (*best)->size))
        best = at;
    if (best == waiting_.end()) return nullptr;
    Block* block = *best;
    waiting_.erase(best);
    waits_ -= block->size;
    lent_ += block->size;
    most_lent_ = std::max(most_lent_, lent_);
    return block;
  }

  Block* made(size_t size) {
    char* mapped = (char*)mmap(nullptr, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == (char*)MAP_FAILED) return nullptr;
    size_t before = (PAGE - (uintptr_t)mapped % PAGE) % PAGE;  // what lies around the block goes back at once
    if (before) munmap(mapped, before);
    munmap(mapped + before + size, PAGE - before);
    madvise(mapped + before, size, MADV_HUGEPAGE);
    Blocks gone;
    std::lock_guard lock(busy_);
    lent_ += size;
    most_lent_ = std::max(most_lent_, lent_);
    keep(most_lent_ - lent_, gone);  // lent and waiting blocks together are never more than were lent at once
    return new Block{mapped + before, size, forks_};
  }

  // Those that have waited longest go, until at most so many bytes wait.
  void keep(size_t bytes, Blocks& gone) {
    while (waits_ > bytes) {
      waits_ -= waiting_.front()->size;
      gone.push_back(waiting_.front());
      waiting_.erase(waiting_.begin());
    }
  }

  std::mutex busy_;
  std::vector<Block*> waiting_;  // in the order in which they came back
  size_t waits_ = 0, lent_ = 0, most_lent_ = 0;
  int forks_ = 0;
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
