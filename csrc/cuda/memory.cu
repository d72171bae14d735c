#include "check.h"
#include "memory.h"

namespace torch_gas::cuda {

HostRegistration::HostRegistration(void* address, size_t bytes, int device)
    : address_(address), device_(device) {
  const DeviceGuard guard(device);
  int same_pointer = 0;
  check_cuda(
      cudaDeviceGetAttribute(&same_pointer, cudaDevAttrCanUseHostPointerForRegisteredMem, device),
      "register: cudaDeviceGetAttribute");
  if (same_pointer == 0) {
    throw std::runtime_error(message("register: device ", device,
                                     " cannot read host memory that is page-locked in place; keep "
                                     "tables pageable with `tier=\"host\"`"));
  }
  check_cuda(cudaHostRegister(address, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
             "register: cudaHostRegister",
             "; raise the limit of locked memory (`ulimit -l`, or that of the container), take "
             "smaller or half-precision histories, or keep tables pageable with `tier=\"host\"`");
}

// Kernels may still use the memory, so the device finishes first. Errors are ignored: a destructor
// has no one to tell, and at the end of the process the runtime may be gone already.
HostRegistration::~HostRegistration() {
  try {
    const DeviceGuard guard(device_);
    cudaDeviceSynchronize();
    cudaHostUnregister(address_);
  } catch (const std::exception&) {
  }
  cudaGetLastError();
}

}  // namespace torch_gas::cuda
