#include "memory.h"

#include <emulated.h>
#include <sys/mman.h>

#include <cstdint>
#include <vector>

#include "sanitizers.h"
#include "schedule.h"

namespace emulated {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;  // as cudaMalloc has it

// Pages of their own, with one on each side that nobody may touch.
struct Pages {
  char* begin;
  size_t bytes;
  char* address;  // of the memory in them
  size_t size;
  int device;  // -1: of the host
  bool freed;

  bool holds(const void* at, size_t length) const {
    const char* const first = static_cast<const char*>(at);
    return !freed && first >= address && first + length <= address + size;
  }
};

struct Range {
  char* begin;
  size_t bytes;
};

std::vector<Pages> all_pages;
std::vector<Range> locked_ranges;
bool host_is_device = false;

void protect(const Pages& pages, bool usable) {
  mprotect(pages.begin, pages.bytes, usable ? PROT_READ | PROT_WRITE : PROT_NONE);
}

bool is_locked(const void* at, size_t bytes) {
  for (const Range& range : locked_ranges) {
    const char* const first = static_cast<const char*>(at);
    if (first >= range.begin && first + bytes <= range.begin + range.bytes) return true;
  }
  return false;
}

// Memory that ends where its pages end, as far as the alignment allows: what lies behind it is
// poisoned.
void* map(size_t bytes, size_t alignment, int device) {
  const size_t size = (bytes + alignment - 1) / alignment * alignment;
  const size_t usable = (size + kPage - 1) / kPage * kPage + (size == 0 ? kPage : 0);
  char* const all = static_cast<char*>(mmap(nullptr, usable + 2 * kPage, PROT_NONE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  Pages pages{all + kPage, usable, all + kPage + usable - size, bytes, device, false};
  protect(pages, true);
  // Numbers that no test has, instead of zeros.
  for (size_t i = 0; i < usable; ++i) pages.begin[i] = static_cast<char>(0xa5);
  poison(pages.begin, pages.address - pages.begin);
  poison(pages.address + bytes, pages.begin + usable - pages.address - bytes);
  if (device >= 0) protect(pages, false);
  all_pages.push_back(pages);
  return pages.address;
}

// The pages stay, unreadable: nothing else ever lies there.
cudaError_t unmap(void* address, bool of_device) {
  for (Pages& pages : all_pages) {
    if (pages.address == address && !pages.freed && (pages.device >= 0) == of_device) {
      pages.freed = true;
      protect(pages, false);
      return cudaSuccess;
    }
  }
  return cudaErrorInvalidValue;
}

void switch_to_device(int device, bool works) {
  for (const Pages& pages : all_pages) {
    if (pages.freed) continue;
    if (pages.device == device) protect(pages, works);
    if (pages.device < 0 && !is_locked(pages.address, pages.size)) protect(pages, !works);
  }
}

}  // namespace

void show_device(int device) {
  switch_to_device(device, true);
}
void hide_device(int device) {
  switch_to_device(device, false);
}

Kind kind_of(const void* address, size_t bytes) {
  for (const Pages& pages : all_pages) {
    if (pages.device >= 0 && pages.holds(address, bytes)) return Kind::device;
  }
  if (is_locked(address, bytes)) return Kind::locked;
  return host_is_device ? Kind::device : Kind::pageable;
}

void reset_memory() {
  for (const Pages& pages : all_pages) {
    unpoison(pages.begin, pages.bytes);
    munmap(pages.begin - kPage, pages.bytes + 2 * kPage);
  }
  all_pages.clear();
  locked_ranges.clear();
}

cudaError_t allocate_device(void** address, size_t bytes, int device) {
  *address = map(bytes, kAlignment, device);
  return cudaSuccess;
}
cudaError_t free_device(void* address) {
  return unmap(address, true);
}

cudaError_t lock_host(void* address, size_t bytes) {
  char* const begin = static_cast<char*>(address);
  if (address == nullptr || bytes == 0) return cudaErrorInvalidValue;
  for (const Range& range : locked_ranges) {
    if (begin < range.begin + range.bytes && range.begin < begin + bytes) {
      return cudaErrorHostMemoryAlreadyRegistered;
    }
  }
  locked_ranges.push_back({begin, bytes});
  return cudaSuccess;
}
cudaError_t unlock_host(void* address) {
  for (size_t i = 0; i < locked_ranges.size(); ++i) {
    if (locked_ranges[i].begin == address) {
      locked_ranges.erase(locked_ranges.begin() + i);
      return cudaSuccess;
    }
  }
  return cudaErrorHostMemoryNotRegistered;
}

void* pageable(size_t bytes) {
  const Lock lock;
  return map(bytes, kAlignment, -1);
}
void free_pageable(void* address) {
  const Lock lock;
  unmap(address, false);
}
void trust_host_memory(bool trust) {
  host_is_device = trust;
}
bool is_page_locked(const void* address, size_t bytes) {
  const Lock lock;
  return is_locked(address, bytes);
}

}  // namespace emulated
