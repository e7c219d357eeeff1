#include "cpu/memory.h"

#if defined(__linux__)
#include <sys/mman.h>

#include <atomic>
#endif

namespace genkern {

#if defined(__linux__) && defined(MADV_FREE)
namespace {

constexpr uint64_t kPage = uint64_t{2} << 20;

// Kept blocks, each one word: the address, and in the bits that alignment leaves 0 the number of
// pages. A word changes hands as a whole, so there is no lock that a fork could find held.
constexpr int kSlots = 16;
std::atomic<uint64_t> slots[kSlots];

uint64_t pages_of(int64_t bytes) { return (static_cast<uint64_t>(bytes) + kPage - 1) / kPage; }

void* map(uint64_t pages) {
  const uint64_t size = (pages + 1) * kPage;
  void* const mapped =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const uint64_t begin = reinterpret_cast<uint64_t>(mapped);
  const uint64_t first = (begin + kPage - 1) & ~(kPage - 1), last = first + pages * kPage;
  if (first > begin) munmap(mapped, first - begin);
  if (begin + size > last) munmap(reinterpret_cast<void*>(last), begin + size - last);
  void* const block = reinterpret_cast<void*>(first);
  madvise(block, pages * kPage, MADV_HUGEPAGE);
  return block;
}

}  // namespace

void* take_block(int64_t bytes) {
  const uint64_t pages = pages_of(bytes);
  if (pages >= kPage) return nullptr;
  for (auto& slot : slots) {
    uint64_t word = slot.load(std::memory_order_relaxed);
    if (word % kPage == pages && slot.compare_exchange_strong(word, 0, std::memory_order_acquire)) {
      return reinterpret_cast<void*>(word - pages);
    }
  }
  return map(pages);
}

void give_block(void* block, int64_t bytes) {
  const uint64_t pages = pages_of(bytes);
  if (madvise(block, pages * kPage, MADV_FREE) != 0) {
    munmap(block, pages * kPage);
    return;
  }
  const uint64_t word = reinterpret_cast<uint64_t>(block) + pages;
  for (auto& slot : slots) {
    uint64_t empty = 0;
    if (slot.compare_exchange_strong(empty, word, std::memory_order_release,
                                     std::memory_order_relaxed)) {
      return;
    }
  }
  // In the place of another, in turn: sizes that are no longer in use go.
  static std::atomic<unsigned> turn;
  const uint64_t old = slots[turn++ % kSlots].exchange(word, std::memory_order_acq_rel);
  if (old != 0) munmap(reinterpret_cast<void*>(old - old % kPage), old % kPage * kPage);
}

#else

void* take_block(int64_t) { return nullptr; }
void give_block(void*, int64_t) {}

#endif

}  // namespace genkern
