// How the operating system lays out host memory, and what lies there.
#pragma once

#include <cstdint>
#include <memory>

namespace torch_gas {

// Asks for huge pages for all whole pages in [address, address + bytes), and returns whether the
// kernel took the advice. Rows at random places then miss the TLB less often, and memory that is
// new is there sooner.
bool advise_huge_pages(uintptr_t address, uintptr_t bytes);

// A number that tells the contents of memory apart. It is exact up to chance where `lines` is 0 or
// the memory has no more lines of 64 bytes; else it goes by `lines` of them, from the first to the
// last at even distances.
uint64_t fingerprint(uintptr_t address, int64_t bytes, int64_t lines, int threads);

// An array of arbitrary content, in huge pages where the system has them.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size) : items_(new T[size]) {
    advise_huge_pages(reinterpret_cast<uintptr_t>(items_.get()), size * sizeof(T));
  }
  T* data() { return items_.get(); }

 private:
  std::unique_ptr<T[]> items_;
};

}  // namespace torch_gas
