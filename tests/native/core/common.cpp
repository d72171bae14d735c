#include "common.h"

#include <emulated.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace torch_gas::tests {

uint64_t seed = 0;

void require(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), what.c_str());
  std::exit(1);
}

void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorName(status));
}

int64_t below(Random& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

bool same(DType dtype, const Bytes& ours, const Bytes& theirs) {
  if (dtype != DType::f16 && dtype != DType::bf16) return ours == theirs;
  const auto is_nan = [&](const char* at) {
    uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return (bits & 0x7fff) > (dtype == DType::f16 ? 0x7c00 : 0x7f80);
  };
  if (ours.size() != theirs.size()) return false;
  for (size_t i = 0; i < ours.size(); i += 2) {
    const bool equal = ours[i] == theirs[i] && ours[i + 1] == theirs[i + 1];
    if (!equal && !(is_nan(&ours[i]) && is_nan(&theirs[i]))) return false;
  }
  return true;
}

Memory::Memory(Place place, size_t bytes, size_t shift)
    : place_(place), shift_(shift), bytes_(bytes) {
  if (place == Place::device) check(cudaMalloc(&address_, bytes + shift), "cudaMalloc");
  if (place == Place::locked) check(cudaMallocHost(&address_, bytes + shift), "cudaMallocHost");
  if (place == Place::pageable) address_ = emulated::pageable(bytes + shift);
}

Memory::~Memory() {
  if (place_ == Place::device) cudaFree(address_);
  if (place_ == Place::locked) cudaFreeHost(address_);
  if (place_ == Place::pageable) emulated::free_pageable(address_);
}

void Memory::put(const Bytes& bytes) const {
  check(cudaDeviceSynchronize(), "put");
  if (place_ == Place::device) {
    check(cudaMemcpyAsync(data(), bytes.data(), bytes.size(), cudaMemcpyDefault, nullptr), "put");
    check(cudaDeviceSynchronize(), "put");
  } else {
    std::copy(bytes.begin(), bytes.end(), data());
  }
}

Bytes Memory::get() const {
  Bytes bytes(bytes_);
  check(cudaDeviceSynchronize(), "get");
  if (place_ == Place::device) {
    check(cudaMemcpyAsync(bytes.data(), data(), bytes_, cudaMemcpyDefault, nullptr), "get");
  } else {
    std::copy(data(), data() + bytes_, bytes.begin());
  }
  return bytes;
}

void order(cudaStream_t earlier, cudaStream_t later) {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  check(cudaEventRecord(event, earlier), "record");
  check(cudaStreamWaitEvent(later, event, 0), "wait");
  check(cudaEventDestroy(event), "destroy");
}

Bytes random_rows(Random& random, DType dtype, int64_t num_rows, int64_t num_cols) {
  std::normal_distribution<float> normal;
  std::vector<float> values(num_rows * num_cols);
  for (float& value : values)
    value = std::ldexp(normal(random), static_cast<int>(below(random, 40)) - 30);
  if (num_rows > 2 && num_cols > 0) {
    std::fill_n(values.begin() + num_cols, num_cols, 0.0f);
    values[2 * num_cols] = INFINITY;
  }
  Bytes out(num_rows * row_bytes(dtype, num_cols));
  if (values.empty()) return out;
  convert_rows(out.data(), dtype, reinterpret_cast<const char*>(values.data()), DType::f32,
               num_rows, num_cols);
  return out;
}

std::vector<int64_t> distinct(Random& random, int64_t count, int64_t bound) {
  std::vector<int64_t> all(bound);
  std::iota(all.begin(), all.end(), int64_t{0});
  std::shuffle(all.begin(), all.end(), random);
  all.resize(std::min(count, bound));
  return all;
}

std::vector<int64_t> any_ids(Random& random, int64_t count, int64_t bound) {
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = below(random, bound);
  return ids;
}

Parts random_parts(Random& random, int64_t num_rows) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t at = 0; at < num_rows;) {
    const int64_t length = std::min(num_rows - at, below(random, num_rows / 4 + 2));
    if (random() % 4 != 0) found.emplace_back(at, length);
    at += std::max<int64_t>(length, 1);
  }
  if (random() % 2) std::shuffle(found.begin(), found.end(), random);
  Parts parts;
  for (const auto& [offset, count] : found) {
    parts.offset.push_back(offset);
    parts.count.push_back(count);
    parts.total += count;
  }
  return parts;
}

std::string name_of(const char* call, DType table, DType rows, int64_t num_cols, int64_t num_rows) {
  return std::string(call) + " of types " + std::to_string(int(table)) + " and " +
         std::to_string(int(rows)) + ", " + std::to_string(num_rows) + " rows of " +
         std::to_string(num_cols);
}

File::File(const Bytes& bytes) {
  char name[] = "/tmp/emulated_XXXXXX";
  descriptor = mkstemp(name);
  require(descriptor >= 0, "mkstemp");
  unlink(name);
  require(write(descriptor, bytes.data(), bytes.size()) == ssize_t(bytes.size()), "write");
}

File::~File() {
  close(descriptor);
}

Bytes File::get(size_t bytes) const {
  Bytes out(bytes);
  require(pread(descriptor, out.data(), bytes, 0) == ssize_t(bytes), "pread");
  return out;
}

}  // namespace torch_gas::tests
