// Page-locking host memory in place.
#pragma once

#include <cstddef>

namespace torch_gas::cuda {

// Page-locks memory of any address and size while it lives, so that kernels and copy engines of
// every device reach it. The memory must outlive it.
class HostRegistration {
 public:
  HostRegistration(void* address, size_t bytes, int device);
  ~HostRegistration();
  HostRegistration(const HostRegistration&) = delete;
  HostRegistration& operator=(const HostRegistration&) = delete;

 private:
  void* address_;
  int device_;
};

}  // namespace torch_gas::cuda
