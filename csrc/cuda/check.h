// Return codes of the CUDA runtime as errors, and the current device.
#pragma once

#include <cuda_runtime.h>

#include "../check.h"

namespace torch_gas::cuda {

// Throws an error that names the call `what` and says what to do about it, if that is known.
inline void check_cuda(cudaError_t status, const char* what, const char* fix = "") {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it is reported here: the check of a later kernel must not see it again
  throw std::runtime_error(
      message(what, " failed: ", cudaGetErrorName(status), ": ", cudaGetErrorString(status), fix));
}

// Makes a device current, and the one before again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  // Not checked: a destructor has no one to tell, and the next call checks again.
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace torch_gas::cuda
