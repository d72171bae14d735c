// Epochs of pulls and pushes on streams of their own, by way of a buffer and in place.
#include <algorithm>

#include "cuda/memory.h"
#include "cuda/staged.h"
#include "program.h"

namespace torch_gas::tests {
namespace {

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

}  // namespace

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

}  // namespace torch_gas::tests
