// What tests tell the emulated runtime, beyond CUDA's own calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulated {

// Begins anew: all streams, events and memory of devices are gone, and errors are forgotten. The
// schedule of what follows is drawn by `seed`.
void reset(uint64_t seed);

// Does all work that is queued.
void finish();

// Pageable host memory that kernels and copy engines cannot see: they fault where they touch it.
void* pageable(size_t bytes);
void free_pageable(void* address);

// Host memory that nobody told of stands for memory of a device from now on, and is not protected:
// for programs whose tensors are all in host memory.
void trust_host_memory(bool trust);

// Whether a range of host memory is page-locked.
bool is_page_locked(const void* address, size_t bytes);

// The assertion of a kernel that failed, or nothing.
std::string failed_assertion();

}  // namespace emulated
