// csrc/cuda's list of operators, registered for tensors of the CPU and under a name of its own.
#include <torch/csrc/stable/library.h>

#include "cuda/ops.h"
#include "genkern/schemas.h"

#define CUDA CPU
#define _genkern_cuda _genkern_cuda_on_host
#include "cuda/library.cu"

// What a CPU build of torch has not; -Bsymbolic prefers these to a CUDA build's.
extern "C" {
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
}
