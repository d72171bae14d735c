// Page-locking, several devices, and what must be refused.
#include <emulated.h>
#include <fcntl.h>
#include <unistd.h>

#include "cpu/file.h"
#include "cuda/memory.h"
#include "cuda/staged.h"
#include "program.h"

namespace torch_gas::tests {

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

}  // namespace torch_gas::tests
