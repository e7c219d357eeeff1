// What the scheduler of kernel threads (machine.cpp) and the checks of memory (access.cpp) share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_on_host {

struct Range {
  uintptr_t begin = 0;
  size_t size = 0;
  bool has(uintptr_t address) const { return address - begin < size; }
};

// The thread that runs, if one does.
struct Now {
  bool running = false;
  uint64_t launch_run = 0, block_run = 0;  // a number for every launch, and for every block's run
  uint32_t block = 0, barriers = 0;        // the barriers so far
  int thread = 0;
  Range shared;             // memory of the block
  Range stacks, arguments;  // private to threads, or never written
};
extern Now now;

// Ends the launch; the call that started it gets the text.
[[noreturn]] void fail(const std::string& text);

}  // namespace cuda_on_host
