// What code compiled with -fsanitize=thread calls at each access to memory, in place of
// ThreadSanitizer's library, which knows neither the threads nor the barriers here.
//
// The access is checked against AddressSanitizer's red zones, where its library is loaded, and
// for races.
//
// Two accesses of different threads to the same memory, of which one writes and not both are
// atomic, race unless a barrier of their block is between them. That holds for shared memory and,
// over the whole grid, for global memory.
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

#include "machine.h"

extern "C" {
__attribute__((weak)) void* __asan_region_is_poisoned(void*, size_t);
__attribute__((weak)) void __asan_report_error(void*, void*, void*, void*, int, size_t);
}

namespace cuda_on_host {

void atomic_access(const void* address, size_t size, const void* code);

namespace {

// The last access of a kind, and whether others count as well.
struct Access {
  uint32_t block, barriers;
  int thread;
  bool is_there, of_threads, of_blocks;  // of several, since the barrier; of several, ever
  const void* code;

  bool conflicts() const {
    if (!is_there) return false;
    if (of_blocks || block != now.block) return true;
    return barriers == now.barriers && (of_threads || thread != now.thread);
  }
  void add(const void* by) {
    const bool other_block = is_there && block != now.block;
    const bool together = is_there && !other_block && barriers == now.barriers;
    of_blocks = is_there && (of_blocks || other_block);
    of_threads = together && (of_threads || thread != now.thread);
    block = now.block;
    barriers = now.barriers;
    thread = now.thread;
    is_there = true;
    code = by;
  }
};

// Of two bytes, the smallest number there is; as of a launch, or of a block for shared memory.
constexpr int kCellBits = 1, kPageBits = 12;
struct Cell {
  uint64_t run;
  Access reads, writes, atomics;
};
struct Page {
  Cell cells[1 << (kPageBits - kCellBits)];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;

Page& page_of(uintptr_t address) {
  struct Entry {
    uintptr_t number;
    Page* page;
  };
  static Entry recent[256];
  const uintptr_t number = address >> kPageBits;
  Entry& entry = recent[number % 256];
  if (!entry.page || entry.number != number) {
    auto& found = pages[number];
    if (!found) found = std::make_unique<Page>();
    entry = {number, found.get()};
  }
  return *entry.page;
}

// The file and line of an instruction, by the linker's tools if they are there.
std::string place(const void* code) {
  Dl_info info{};
  if (!dladdr(code, &info) || !info.dli_fname) return "?";
  const auto offset =
      reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  char command[4200], line[1024] = "?";
  // The call's own line: what is given is where it returns to.
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(offset - 1));
  if (FILE* tool = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, tool)) line[0] = '?';
    pclose(tool);
  }
  std::string text = line;
  text = text.substr(text.rfind('/') + 1);
  return text.substr(0, text.find_first_of(" \n"));
}

enum Kind { kRead, kWrite, kAtomic };
constexpr const char* kNames[] = {"read", "write", "atomic"};

[[noreturn]] void report(Kind kind, Kind earlier, const Access& access, bool shared,
                         const void* code) {
  now.running = false;
  fail(std::string("race on ") + (shared ? "shared" : "global") + " memory: " + kNames[earlier] +
       " at " + place(access.code) + " by thread " + std::to_string(access.thread) + " of block " +
       std::to_string(access.block) + " and, no barrier later, " + kNames[kind] + " at " +
       place(code));
}

void check(Kind kind, const void* address, size_t size, const void* code) {
  if (__asan_region_is_poisoned) {
    if (void* bad = __asan_region_is_poisoned(const_cast<void*>(address), size)) {
      void* frame = __builtin_frame_address(0);
      __asan_report_error(const_cast<void*>(code), frame, frame, bad, kind != kRead, size);
    }
  }
  if (!now.running) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (now.stacks.has(begin) || now.arguments.has(begin)) return;
  const bool shared = now.shared.has(begin);
  const uint64_t run = shared ? now.block_run : now.launch_run;
  for (uintptr_t at = begin >> kCellBits << kCellBits; at < begin + size; at += 1 << kCellBits) {
    Cell& cell = page_of(at).cells[at >> kCellBits & ((1 << (kPageBits - kCellBits)) - 1)];
    if (cell.run != run) cell = {run, {}, {}, {}};
    if (cell.writes.conflicts()) report(kind, kWrite, cell.writes, shared, code);
    if (kind != kAtomic && cell.atomics.conflicts())
      report(kind, kAtomic, cell.atomics, shared, code);
    if (kind != kRead && cell.reads.conflicts()) report(kind, kRead, cell.reads, shared, code);
    if (shared && kind != kWrite && !cell.writes.is_there && !cell.atomics.is_there) {
      now.running = false;
      fail("read at " + place(code) + " of shared memory that no thread has written");
    }
    (kind == kRead ? cell.reads : kind == kWrite ? cell.writes : cell.atomics).add(code);
  }
}

}  // namespace

void atomic_access(const void* address, size_t size, const void* code) {
  check(kAtomic, address, size, code);
}

}  // namespace cuda_on_host

#define ACCESS(size)                                                                 \
  void __tsan_read##size(void* p) {                                                  \
    cuda_on_host::check(cuda_on_host::kRead, p, size, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_write##size(void* p) {                                                 \
    cuda_on_host::check(cuda_on_host::kWrite, p, size, __builtin_return_address(0)); \
  }                                                                                  \
  void __tsan_unaligned_read##size(void* p) {                                        \
    cuda_on_host::check(cuda_on_host::kRead, p, size, __builtin_return_address(0));  \
  }                                                                                  \
  void __tsan_unaligned_write##size(void* p) {                                       \
    cuda_on_host::check(cuda_on_host::kWrite, p, size, __builtin_return_address(0)); \
  }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, size_t n) {
  cuda_on_host::check(cuda_on_host::kRead, p, n, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  cuda_on_host::check(cuda_on_host::kWrite, p, n, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Reference counts of torch's tensors, which kernels do not touch.
int __tsan_atomic32_fetch_add(volatile int* p, int x, int) {
  return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
}
