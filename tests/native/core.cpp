// Runs csrc/cuda on the emulated runtime (emulated_cuda/), beside the same calls of csrc/cpu:
// results must have the same bits, whatever the schedule. Sanitizers watch the order of accesses
// and their bounds. Usage: core [seeds] [first seed]
#include <cuda_runtime.h>
#include <emulated.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/file.h"
#include "cpu/rows.h"
#include "cuda/memory.h"
#include "cuda/rows.h"
#include "cuda/staged.h"

namespace torch_gas {
namespace {

using Bytes = std::vector<char>;
using Random = std::mt19937_64;

constexpr DType kFloats[] = {DType::f32, DType::f64, DType::f16, DType::bf16};
constexpr DType kScaled[] = {DType::i8, DType::f8_e4m3, DType::f8_e5m2};

uint64_t seed = 0;

void require(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), what.c_str());
  std::exit(1);
}
void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorName(status));
}

template <class F>
std::string error_of(const F& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

int64_t below(Random& random, int64_t bound) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

// Whether rows are the same, bit for bit; of NaN a device may give another one than the host.
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

enum class Place { device, locked, pageable };

// Memory of any kind, `shift` bytes behind an aligned address.
class Memory {
 public:
  Memory(Place place, size_t bytes, size_t shift = 0)
      : place_(place), shift_(shift), bytes_(bytes) {
    if (place == Place::device) check(cudaMalloc(&address_, bytes + shift), "cudaMalloc");
    if (place == Place::locked) check(cudaMallocHost(&address_, bytes + shift), "cudaMallocHost");
    if (place == Place::pageable) address_ = emulated::pageable(bytes + shift);
  }
  ~Memory() {
    if (place_ == Place::device) cudaFree(address_);
    if (place_ == Place::locked) cudaFreeHost(address_);
    if (place_ == Place::pageable) emulated::free_pageable(address_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return static_cast<char*>(address_) + shift_; }
  size_t size() const { return bytes_; }

  // Both wait until the device has done all that it was given.
  void put(const Bytes& bytes) const {
    check(cudaDeviceSynchronize(), "put");
    if (place_ == Place::device) {
      check(cudaMemcpyAsync(data(), bytes.data(), bytes.size(), cudaMemcpyDefault, nullptr), "put");
      check(cudaDeviceSynchronize(), "put");
    } else {
      std::copy(bytes.begin(), bytes.end(), data());
    }
  }
  Bytes get() const {
    Bytes bytes(bytes_);
    check(cudaDeviceSynchronize(), "get");
    if (place_ == Place::device) {
      check(cudaMemcpyAsync(bytes.data(), data(), bytes_, cudaMemcpyDefault, nullptr), "get");
    } else {
      std::copy(data(), data() + bytes_, bytes.begin());
    }
    return bytes;
  }

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
void order(cudaStream_t earlier, cudaStream_t later) {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  check(cudaEventRecord(event, earlier), "record");
  check(cudaStreamWaitEvent(later, event, 0), "wait");
  check(cudaEventDestroy(event), "destroy");
}

// Rows of numbers of all sizes, with a row of zeros and one with infinity in it.
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

// Ranges that do not overlap, in any order; some are empty, some are adjacent.
struct Parts {
  std::vector<int64_t> offset, count;
  int64_t total = 0;
  int64_t size() const { return static_cast<int64_t>(offset.size()); }
};

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

bool is_sum(DType table, DType rows) {
  return (table == DType::f32 || table == DType::f64) &&
         element_size(rows) <= element_size(table) && !dispatch_scaled(rows, [](auto) {});
}

template <class I>
std::vector<I> narrow(const std::vector<int64_t>& ids) {
  return {ids.begin(), ids.end()};
}

// All calls on a table of one shape and two types, in one order on one stream, beside the host's.
template <class I>
void moves(Random& random, DType table_type, DType rows_type, Place place, int64_t num_cols,
           int64_t num_nodes, int64_t num_rows) {
  const size_t shift = random() % 3 == 0 ? element_size(table_type) : 0;
  const Bytes numbers = random_rows(random, table_type, num_nodes, num_cols);
  Bytes host_numbers = numbers;
  const Memory table_memory(place, numbers.size(), shift);
  table_memory.put(numbers);
  const Table table{table_memory.data(), table_type, num_nodes, num_cols};
  const Table host_table{host_numbers.data(), table_type, num_nodes, num_cols};
  const bool in_host = place != Place::device;
  StreamOwner stream;
  if (random() % 4 == 0)
    stream.handle = nullptr;  // the default stream, which takes no batches of copies

  const auto name = [&](const char* call) {
    return name_of(call, table_type, rows_type, num_cols, num_rows);
  };
  const auto read = [&](const char* call, int64_t count, const auto& on_device,
                        const auto& on_host) {
    const size_t bytes = count * row_bytes(rows_type, num_cols);
    const Memory out(Place::device, bytes, random() % 3 == 0 ? element_size(rows_type) : 0);
    Bytes expected(bytes);
    on_device(Rows{out.data(), rows_type, count});
    on_host(Rows{expected.data(), rows_type, count});
    require(same(rows_type, out.get(), expected), name(call));
  };
  const auto write = [&](const char* call, int64_t count, const auto& on_device,
                         const auto& on_host) {
    Bytes bytes = random_rows(random, rows_type, count, num_cols);
    const Memory in(Place::device, bytes.size());
    in.put(bytes);
    on_device(Rows{in.data(), rows_type, count});
    on_host(Rows{bytes.data(), rows_type, count});
    require(same(table_type, table_memory.get(), host_numbers), name(call));
  };

  const std::vector<int64_t> wide = any_ids(random, num_rows, num_nodes);
  const std::vector<I> ids = narrow<I>(wide);
  const auto ids_there = on_device(ids);
  const cuda::Index index{ids_there->data(), int(sizeof(I) * 8)};
  read(
      "gather_rows", num_rows,
      [&](const Rows& rows) { cuda::gather_rows(table, index, rows, stream.on_device(), in_host); },
      [&](const Rows& rows) { gather_rows(host_table, ids.data(), rows, 1); });

  const std::vector<I> targets = narrow<I>(distinct(random, num_rows, num_nodes));
  const auto targets_there = on_device(targets);
  write(
      "scatter_rows", targets.size(),
      [&](const Rows& rows) {
        cuda::scatter_rows(table, {targets_there->data(), int(sizeof(I) * 8)}, rows,
                           stream.on_device(), in_host);
      },
      [&](const Rows& rows) { scatter_rows(host_table, targets.data(), rows, 1); });

  const Parts parts = random_parts(random, num_nodes);
  write(
      "write_chunks", parts.total,
      [&](const Rows& rows) {
        cuda::write_chunks(table, parts.offset.data(), parts.count.data(), parts.size(), rows,
                           stream.on_device(), in_host);
      },
      [&](const Rows& rows) {
        write_chunks(host_table, parts.offset.data(), parts.count.data(), parts.size(), rows, 1);
      });
  read(
      "read_chunks", parts.total,
      [&](const Rows& rows) {
        cuda::read_chunks(table, parts.offset.data(), parts.count.data(), parts.size(), rows,
                          stream.on_device(), in_host);
      },
      [&](const Rows& rows) {
        read_chunks(host_table, parts.offset.data(), parts.count.data(), parts.size(), rows, 1);
      });

  if (!is_sum(table_type, rows_type)) return;
  std::vector<int64_t> order(num_rows);  // as torch.sort(stable=True) gives it
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return wide[a] < wide[b]; });
  std::vector<I> sorted(num_rows);
  for (int64_t i = 0; i < num_rows; ++i) sorted[i] = ids[order[i]];
  const auto sorted_there = on_device(sorted), order_there = on_device(order);
  const cuda::Index ascending{sorted_there->data(), int(sizeof(I) * 8)};
  const auto* const from = reinterpret_cast<const int64_t*>(order_there->data());
  const bool is_ordered = random() % 2;
  write(
      "add_rows", num_rows,
      [&](const Rows& rows) {
        cuda::add_rows(table, ascending, is_ordered ? from : nullptr, rows, stream.on_device(),
                       in_host);
      },
      [&](const Rows& rows) {
        add_rows(host_table, is_ordered ? ids.data() : sorted.data(), rows, 1);
      });
}

void all_moves(Random& random) {
  const auto run = [&](DType table, DType rows) {
    static constexpr int64_t kWidths[] = {1, 2, 3, 4, 5, 8, 16, 31, 33, 70};
    const int64_t num_cols = kWidths[below(random, std::size(kWidths))];
    const Place place = random() % 2 ? Place::device : Place::locked;
    const int64_t num_nodes = 1 + below(random, 60), num_rows = below(random, 80);
    random() % 2 ? moves<int32_t>(random, table, rows, place, num_cols, num_nodes, num_rows)
                 : moves<int64_t>(random, table, rows, place, num_cols, num_nodes, num_rows);
  };
  for (const DType table : kFloats) {
    for (const DType rows : kFloats) run(table, rows);
    for (const DType other : kScaled) run(table, other), run(other, table);
  }
  for (const DType dtype : kScaled) run(dtype, dtype);
  // Rows wider than a block, more of them than the grid holds, and none.
  moves<int64_t>(random, DType::f32, DType::f64, Place::device, 2100, 50, 40);
  moves<int32_t>(random, DType::f32, DType::f32, Place::locked, 2100, 50, 90);
  moves<int32_t>(random, DType::i8, DType::f32, Place::device, 3, 50, 400);
  moves<int64_t>(random, DType::f32, DType::bf16, Place::device, 5, 4, 0);
  moves<int64_t>(random, DType::f32, DType::f32, Place::locked, 0, 4, 3);
}

// A table in a file of its own, that has a name no longer.
class File {
 public:
  explicit File(const Bytes& bytes) {
    char name[] = "/tmp/emulated_XXXXXX";
    descriptor = mkstemp(name);
    require(descriptor >= 0, "mkstemp");
    unlink(name);
    require(write(descriptor, bytes.data(), bytes.size()) == ssize_t(bytes.size()), "write");
  }
  ~File() { close(descriptor); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  Bytes get(size_t bytes) const {
    Bytes out(bytes);
    require(pread(descriptor, out.data(), bytes, 0) == ssize_t(bytes), "pread");
    return out;
  }
  int descriptor;
};

// The calls of an epoch, as the transfer engine makes them: rows are pulled on one stream, used on
// another and pushed on a third, and what is pushed in one step is pulled in the next.
template <class Pull, class Push>
void epoch(Random& random, int64_t num_nodes, int64_t num_cols, DType rows_type, const Pull& pull,
           const Push& push) {
  const StreamOwner pulls, pushes, compute;
  const size_t row = row_bytes(rows_type, num_cols);
  std::vector<std::unique_ptr<Memory>> kept;  // as a stream keeps what it was told to hold
  for (int step = 0; step < 6; ++step) {
    const Parts parts = random_parts(random, num_nodes);
    const std::vector<int64_t> halo = any_ids(random, below(random, 40), num_nodes);
    kept.push_back(std::make_unique<Memory>(Place::device, halo.size() * row));
    const Memory& pulled = *kept.back();
    kept.push_back(std::make_unique<Memory>(Place::device, parts.total * row));
    const Memory& pushed = *kept.back();
    order(pushes.handle, pulls.handle);  // a pull finds what was pushed before
    pull(halo, Rows{pulled.data(), rows_type, int64_t(halo.size())}, pulls.on_device());
    order(pulls.handle, compute.handle);
    // What is pushed are the rows that were pulled, in turns.
    for (size_t at = 0; at < pushed.size() && pulled.size() > 0; at += pulled.size()) {
      const size_t bytes = std::min(pulled.size(), pushed.size() - at);
      check(cudaMemcpyAsync(pushed.data() + at, pulled.data(), bytes, cudaMemcpyDefault,
                            compute.handle),
            "compute");
    }
    if (pulled.size() == 0) continue;
    order(compute.handle, pushes.handle);
    push(parts, Rows{pushed.data(), rows_type, parts.total}, pushes.on_device());
  }
  check(cudaStreamSynchronize(pushes.handle), "epoch");
}

// The same epoch on the host.
template <class Pull, class Push>
void host_epoch(Random& random, int64_t num_nodes, int64_t num_cols, DType rows_type,
                const Pull& pull, const Push& push) {
  const size_t row = row_bytes(rows_type, num_cols);
  for (int step = 0; step < 6; ++step) {
    const Parts parts = random_parts(random, num_nodes);
    const std::vector<int64_t> halo = any_ids(random, below(random, 40), num_nodes);
    Bytes pulled(halo.size() * row), pushed(parts.total * row);
    pull(halo, Rows{pulled.data(), rows_type, int64_t(halo.size())});
    if (pulled.empty()) continue;
    for (size_t i = 0; i < pushed.size(); ++i) pushed[i] = pulled[i % pulled.size()];
    push(parts, Rows{pushed.data(), rows_type, parts.total});
  }
}

// Calls through a buffer that is much smaller than what goes through it.
void staged(Random& random) {
  static constexpr DType kRows[] = {DType::f32, DType::f16, DType::f64};
  const DType table_type = kFloats[below(random, 4)], rows_type = kRows[below(random, 3)];
  const int64_t num_nodes = 20 + below(random, 60), num_cols = 1 + below(random, 20);
  const Bytes numbers = random_rows(random, table_type, num_nodes, num_cols);
  Bytes host_numbers = numbers;
  const Table host_table{host_numbers.data(), table_type, num_nodes, num_cols};

  const Memory buffer(Place::locked, (2 + below(random, 9)) * row_bytes(rows_type, num_cols) + 7);
  const StreamOwner staging_stream;
  const cuda::Staging staging{buffer.data(), int64_t(buffer.size()), staging_stream.handle};
  // Pushes go by way of the same buffer, or of another one.
  const Memory other_buffer(Place::locked, buffer.size());
  const StreamOwner other_stream;
  cuda::Staging for_pushes{other_buffer.data(), int64_t(buffer.size()), other_stream.handle};
  if (random() % 2) for_pushes = staging;
  const Random begin = random;
  const auto run = [&](const auto& table) {
    Random again = begin;
    epoch(
        again, num_nodes, num_cols, rows_type,
        [&](std::vector<int64_t> halo, const Rows& rows, const cuda::Stream& stream) {
          cuda::staged_gather_rows(table, halo.data(), rows, stream, staging, 1);
          std::fill(halo.begin(), halo.end(), -1);  // the call has its own
        },
        [&](Parts parts, const Rows& rows, const cuda::Stream& stream) {
          cuda::staged_write_chunks(table, parts.offset.data(), parts.count.data(), parts.size(),
                                    rows, stream, for_pushes, 1);
          std::fill(parts.offset.begin(), parts.offset.end(), -1);
        });
    // Two calls by way of one buffer, from streams that nothing else puts in order.
    const Parts parts = random_parts(again, num_nodes);
    const std::vector<int64_t> ids = any_ids(again, 30, num_nodes);
    const size_t row = row_bytes(rows_type, num_cols);
    const Memory chunks(Place::device, parts.total * row),
        gathered(Place::device, ids.size() * row);
    const StreamOwner one, other;
    cuda::staged_read_chunks(table, parts.offset.data(), parts.count.data(), parts.size(),
                             Rows{chunks.data(), rows_type, parts.total}, one.on_device(), staging,
                             1);
    cuda::staged_gather_rows(table, ids.data(), Rows{gathered.data(), rows_type, 30},
                             other.on_device(), staging, 1);
    check(cudaDeviceSynchronize(), "two pulls");
    Bytes expected(chunks.size()), expected_rows(gathered.size());
    read_chunks(host_table, parts.offset.data(), parts.count.data(), parts.size(),
                Rows{expected.data(), rows_type, parts.total}, 1);
    gather_rows(host_table, ids.data(), Rows{expected_rows.data(), rows_type, 30}, 1);
    const std::string name = name_of("staged pulls", table_type, rows_type, num_cols, num_nodes);
    require(same(rows_type, chunks.get(), expected), name);
    require(same(rows_type, gathered.get(), expected_rows), name);
    // And two of the other direction, to other rows.
    const int64_t some = num_nodes / 4, offsets[] = {num_nodes - some, 0}, counts[] = {some, some};
    const Bytes last = random_rows(again, rows_type, counts[0], num_cols);
    const Bytes first = random_rows(again, rows_type, counts[1], num_cols);
    const Memory pushed_last(Place::device, last.size()), pushed_first(Place::device, first.size());
    pushed_last.put(last);
    pushed_first.put(first);
    cuda::staged_write_chunks(table, &offsets[0], &counts[0], 1,
                              Rows{pushed_last.data(), rows_type, counts[0]}, one.on_device(),
                              staging, 1);
    cuda::staged_write_chunks(table, &offsets[1], &counts[1], 1,
                              Rows{pushed_first.data(), rows_type, counts[1]}, other.on_device(),
                              staging, 1);
    check(cudaDeviceSynchronize(), "two pushes");
    return std::pair(last, first);
  };
  host_epoch(
      random, num_nodes, num_cols, rows_type,
      [&](const std::vector<int64_t>& halo, const Rows& rows) {
        gather_rows(host_table, halo.data(), rows, 1);
      },
      [&](const Parts& parts, const Rows& rows) {
        write_chunks(host_table, parts.offset.data(), parts.count.data(), parts.size(), rows, 1);
      });
  const std::string name = name_of("staged epoch", table_type, rows_type, num_cols, num_nodes);
  const Bytes after_epoch = host_numbers;
  const auto expected_after = [&](std::pair<Bytes, Bytes> pushed) {
    host_numbers = after_epoch;
    const int64_t some = num_nodes / 4, offsets[] = {num_nodes - some, 0}, counts[] = {some, some};
    write_chunks(host_table, &offsets[0], &counts[0], 1,
                 Rows{pushed.first.data(), rows_type, counts[0]}, 1);
    write_chunks(host_table, &offsets[1], &counts[1], 1,
                 Rows{pushed.second.data(), rows_type, counts[1]}, 1);
    return host_numbers;
  };

  const Memory memory(Place::pageable, numbers.size());
  memory.put(numbers);
  const auto pushed = run(Table{memory.data(), table_type, num_nodes, num_cols});
  require(same(table_type, memory.get(), expected_after(pushed)), name);

  host_numbers = after_epoch;  // which the run below reads
  const File file(numbers);
  const auto pushed_to_file = run(FileTable{file.descriptor, 0, table_type, num_nodes, num_cols});
  require(same(table_type, file.get(numbers.size()), expected_after(pushed_to_file)),
          name + " of a file");
}

// The same epoch on page-locked and on device tables.
void in_place(Random& random, Place place) {
  const DType table_type = kFloats[below(random, 4)], rows_type = kFloats[below(random, 4)];
  const int64_t num_nodes = 20 + below(random, 60), num_cols = 1 + below(random, 20);
  const Bytes numbers = random_rows(random, table_type, num_nodes, num_cols);
  Bytes host_numbers = numbers;
  const Table host_table{host_numbers.data(), table_type, num_nodes, num_cols};
  const Memory memory(place == Place::device ? Place::device : Place::pageable, numbers.size());
  memory.put(numbers);
  std::unique_ptr<cuda::HostRegistration> registration;
  if (place == Place::locked) {
    registration = std::make_unique<cuda::HostRegistration>(memory.data(), memory.size(), 0);
  }
  const Table table{memory.data(), table_type, num_nodes, num_cols};
  Random again = random;
  std::vector<std::unique_ptr<Memory>> ids;
  epoch(
      again, num_nodes, num_cols, rows_type,
      [&](const std::vector<int64_t>& halo, const Rows& rows, const cuda::Stream& stream) {
        ids.push_back(on_device(halo));
        cuda::gather_rows(table, {ids.back()->data(), 64}, rows, stream, place == Place::locked);
      },
      [&](Parts parts, const Rows& rows, const cuda::Stream& stream) {
        cuda::write_chunks(table, parts.offset.data(), parts.count.data(), parts.size(), rows,
                           stream, place == Place::locked);
        std::fill(parts.offset.begin(), parts.offset.end(), -1);
      });
  host_epoch(
      random, num_nodes, num_cols, rows_type,
      [&](const std::vector<int64_t>& halo, const Rows& rows) {
        gather_rows(host_table, halo.data(), rows, 1);
      },
      [&](const Parts& parts, const Rows& rows) {
        write_chunks(host_table, parts.offset.data(), parts.count.data(), parts.size(), rows, 1);
      });
  require(same(table_type, memory.get(), host_numbers),
          name_of("epoch", table_type, rows_type, num_cols, num_nodes));
}

// Memory is page-locked while kernels of a device may use it, and no longer.
void registration(Random& random, int device) {
  const int64_t num_nodes = 30;
  check(cudaSetDevice(device), "cudaSetDevice");
  Bytes numbers = random_rows(random, DType::f32, num_nodes, 4);
  const Memory memory(Place::pageable, numbers.size());
  memory.put(numbers);
  const Memory out(Place::device, numbers.size());
  const std::vector<int64_t> ids = any_ids(random, num_nodes, num_nodes);
  const auto there = on_device(ids);
  const StreamOwner stream;
  const Table table{memory.data(), DType::f32, num_nodes, 4};
  check(cudaSetDevice(0), "cudaSetDevice");
  {
    const cuda::HostRegistration lock(memory.data(), memory.size(), device);
    const std::string twice =
        error_of([&] { cuda::HostRegistration(memory.data(), memory.size(), 0); });
    require(twice.find("cudaErrorHostMemoryAlreadyRegistered") != twice.npos,
            "registered twice: " + twice);
    cuda::gather_rows(table, {there->data(), 64}, {out.data(), DType::f32, num_nodes},
                      stream.on_device(device), true);
  }
  check(cudaSetDevice(device), "cudaSetDevice");
  Bytes expected(numbers.size());
  gather_rows(Table{numbers.data(), DType::f32, num_nodes, 4}, ids.data(),
              {expected.data(), DType::f32, num_nodes}, 1);
  require(out.get() == expected, "a table that is unregistered behind a call");
  check(cudaSetDevice(0), "cudaSetDevice");
  // It may be registered again.
  const cuda::HostRegistration lock(memory.data(), memory.size(), 1);
}

// Calls on another device than the current one, which stays current.
void devices(Random& random) {
  Bytes numbers = random_rows(random, DType::f32, 10, 4);
  check(cudaSetDevice(1), "cudaSetDevice");
  {
    const Memory table(Place::device, numbers.size()), out(Place::device, numbers.size());
    table.put(numbers);
    const StreamOwner stream;
    const int64_t offset = 0, count = 10;
    check(cudaSetDevice(0), "cudaSetDevice");
    cuda::read_chunks({table.data(), DType::f32, 10, 4}, &offset, &count, 1,
                      {out.data(), DType::f32, 10}, {1, stream.handle}, false);
    const Memory doubles(Place::locked, 2 * numbers.size());
    cuda::read_chunks({table.data(), DType::f32, 10, 4}, &offset, &count, 1,
                      {doubles.data(), DType::f64, 10}, {1, stream.handle}, false);
    int current = -1;
    check(cudaGetDevice(&current), "cudaGetDevice");
    require(current == 0, "a call changed the current device");
    check(cudaStreamSynchronize(stream.handle), "devices");
    check(cudaSetDevice(1), "cudaSetDevice");
    require(out.get() == numbers, "a call on another device");
  }
  check(cudaSetDevice(0), "cudaSetDevice");
}

// What must be refused, and what a kernel finds out.
void errors(Random& random) {
  const Bytes numbers = random_rows(random, DType::f32, 10, 4);
  const auto fails = [&](int64_t bad, const char* assertion, const auto& call) {
    {
      const Memory table(Place::device, numbers.size()), rows(Place::device, numbers.size());
      table.put(numbers);
      rows.put(numbers);
      std::vector<int64_t> ids = {0, 1, 2, 3, 4, 5, 6, 7, 8, bad};
      const auto there = on_device(ids);
      const StreamOwner stream;
      call(Table{table.data(), DType::f32, 10, 4}, cuda::Index{there->data(), 64},
           Rows{rows.data(), DType::f32, 10}, stream.on_device());
      require(cudaStreamSynchronize(stream.handle) == cudaErrorAssert,
              std::string("no assertion: ") + assertion);
      require(emulated::failed_assertion().find(assertion) != std::string::npos,
              "another assertion: " + emulated::failed_assertion());
      const std::string later = error_of([&] {
        cuda::gather_rows({table.data(), DType::f32, 10, 4}, {there->data(), 64},
                          {rows.data(), DType::f32, 10}, stream.on_device(), false);
      });
      require(later.find("cudaErrorAssert") != later.npos,
              "a call behind a failed kernel: " + later);
    }
    emulated::reset(seed);
  };
  for (const int64_t bad : {int64_t{-1}, int64_t{10}, int64_t{1} << 40}) {
    fails(bad, "out of range", [](auto table, auto index, auto rows, auto stream) {
      cuda::gather_rows(table, index, rows, stream, false);
    });
    fails(bad, "out of range", [](auto table, auto index, auto rows, auto stream) {
      cuda::scatter_rows(table, index, rows, stream, false);
    });
  }
  fails(10, "out of range", [](auto table, auto index, auto rows, auto stream) {
    cuda::add_rows(table, index, nullptr, rows, stream, false);
  });
  fails(3, "descend", [](auto table, auto index, auto rows, auto stream) {
    cuda::add_rows(table, index, nullptr, rows, stream, false);
  });

  // A failed call leaves nothing behind that a later one would report.
  const Memory table(Place::device, numbers.size()), rows(Place::device, numbers.size());
  table.put(numbers);
  const int64_t offset = 0, count = 10, far = 3;
  const Table there{table.data(), DType::f32, 10, 4};
  const Rows out{rows.data(), DType::f32, 10};
  const StreamOwner stream;
  const cuda::Stream unknown{0, &seed}, absent{7, nullptr};
  for (const cuda::Stream& wrong : {unknown, absent}) {
    const std::string error =
        error_of([&] { cuda::read_chunks(there, &offset, &count, 1, out, wrong, false); });
    require(error.find("failed: cudaErrorInvalid") != error.npos, "a wrong stream: " + error);
  }
  require(cudaGetLastError() == cudaSuccess, "an error was left behind");
  const std::string range =
      error_of([&] { cuda::read_chunks(there, &far, &count, 1, out, stream.on_device(), false); });
  require(range.find("every range must lie in [0, 10)") != range.npos, "a range too far: " + range);
  cuda::read_chunks(there, &offset, &count, 1, out, stream.on_device(), false);
  require(rows.get() == numbers, "a call behind refused ones");

  // A transfer by way of a buffer is refused before any of it is queued, or notes what a file
  // refuses.
  const Memory buffer(Place::locked, 64);
  const cuda::Staging staging{buffer.data(), 64, stream.handle};
  const File file(numbers);
  const int64_t ids[] = {1, 10};
  const std::string id = error_of([&] {
    cuda::staged_gather_rows(FileTable{file.descriptor, 0, DType::f32, 10, 4}, ids,
                             {rows.data(), DType::f32, 2}, stream.on_device(), staging, 1);
  });
  require(id.find("10") != id.npos, "an id out of range in a staged call: " + id);
  const FileTable read_only{open("/dev/null", O_RDONLY), 0, DType::f32, 10, 4};
  cuda::staged_write_chunks(read_only, &offset, &count, 1, out, stream.on_device(), staging, 1);
  check(cudaStreamSynchronize(stream.handle), "a refused write");
  require(!noted_failure(read_only.file).empty(), "a refused write was not noted");
  forget_failure(read_only.file);
  close(read_only.file);

  const std::string null = error_of([&] { cuda::HostRegistration(nullptr, 0, 0); });
  require(null.find("ulimit -l") != null.npos, "nothing to register: " + null);
  const std::string narrow = error_of([&] {
    cuda::add_rows({table.data(), DType::f16, 10, 4}, {table.data(), 64}, nullptr, out,
                   stream.on_device(), false);
  });
  require(narrow == kNarrowSums, "narrow sums: " + narrow);
}

void run_all() {
  emulated::reset(seed);
  Random random(seed);
  all_moves(random);
  for (int i = 0; i < 8; ++i) {
    staged(random);
    in_place(random, Place::device);
    in_place(random, Place::locked);
  }
  registration(random, 0);
  registration(random, 1);
  devices(random);
  errors(random);
  emulated::reset(seed);
}

}  // namespace
}  // namespace torch_gas

int main(int argc, char** argv) {
  const uint64_t seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (torch_gas::seed = first; torch_gas::seed < first + seeds; ++torch_gas::seed)
    torch_gas::run_all();
  std::puts("device and host agree");
}
