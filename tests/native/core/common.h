// What all files of the program share: memory of every kind, streams, numbers and ids by chance,
// and how a failure ends it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/rows.h"
#include "cuda/rows.h"

namespace torch_gas::tests {

using Bytes = std::vector<char>;
using Random = std::mt19937_64;

constexpr DType kFloats[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr DType kScaled[] = {DType::i8, DType::f8_e4m3, DType::f8_e5m2};

extern uint64_t seed;  // of this schedule

// Both end the process, with the seed and these words, where something is not as it must be.
void require(bool ok, const std::string& what);
void check(cudaError_t status, const char* what);

template <class F>
std::string error_of(const F& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

int64_t below(Random& random, int64_t bound);

// Whether rows are the same, bit for bit; of NaN a device may give another one than the host.
bool same(DType dtype, const Bytes& ours, const Bytes& theirs);

enum class Place { device, locked, pageable };

// Memory of any kind, `shift` bytes behind an aligned address.
class Memory {
 public:
  Memory(Place place, size_t bytes, size_t shift = 0);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return static_cast<char*>(address_) + shift_; }
  size_t size() const { return bytes_; }

  // Both wait until the device has done all that it was given.
  void put(const Bytes& bytes) const;
  Bytes get() const;

 private:
  Place place_;
  size_t shift_, bytes_;
  void* address_ = nullptr;
};

template <class T>
std::unique_ptr<Memory> on_device(const std::vector<T>& values) {
  auto memory = std::make_unique<Memory>(Place::device, values.size() * sizeof(T));
  const char* const data = reinterpret_cast<const char*>(values.data());
  memory->put(Bytes(data, data + memory->size()));
  return memory;
}

struct StreamOwner {
  StreamOwner() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), "stream"); }
  cuda::Stream on_device(int device = 0) const { return {device, handle}; }
  cudaStream_t handle;
};

// What is queued on `later` from now on follows what was queued on `earlier`.
void order(cudaStream_t earlier, cudaStream_t later);

// Rows of numbers of all sizes, with a row of zeros and one with infinity in it.
Bytes random_rows(Random& random, DType dtype, int64_t num_rows, int64_t num_cols);

std::vector<int64_t> distinct(Random& random, int64_t count, int64_t bound);
std::vector<int64_t> any_ids(Random& random, int64_t count, int64_t bound);

// Ranges that do not overlap, in any order; some are empty, some are adjacent.
struct Parts {
  std::vector<int64_t> offset, count;
  int64_t total = 0;
  int64_t size() const { return static_cast<int64_t>(offset.size()); }
};

Parts random_parts(Random& random, int64_t num_rows);

std::string name_of(const char* call, DType table, DType rows, int64_t num_cols, int64_t num_rows);

// A table in a file of its own, that has a name no longer.
class File {
 public:
  explicit File(const Bytes& bytes);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  Bytes get(size_t bytes) const;
  int descriptor;
};

}  // namespace torch_gas::tests
