// How the operating system lays out host memory.
#pragma once

#include <cstdint>
#include <memory>

namespace torch_gas {

// Asks for huge pages for all whole pages in [address, address + bytes), and returns whether the
// kernel took the advice. Rows at random places then miss the TLB less often, and memory that is
// new is there sooner.
bool advise_huge_pages(uintptr_t address, uintptr_t bytes);

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
