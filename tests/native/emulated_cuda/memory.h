// Memory of devices and page-locked memory of the host.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace emulated {

// Makes memory of a device readable, and pageable memory unreadable, while the device works.
void show_device(int device);
void hide_device(int device);

// What memory a copy meets at an address.
enum class Kind { device, locked, pageable };
Kind kind_of(const void* address, size_t bytes);

void reset_memory();
cudaError_t allocate_device(void** address, size_t bytes, int device);
cudaError_t free_device(void* address);
cudaError_t lock_host(void* address, size_t bytes);
cudaError_t unlock_host(void* address);

}  // namespace emulated
