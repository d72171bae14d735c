// Every call on tables of one shape and two types, beside the host's.
#include <algorithm>
#include <iterator>
#include <numeric>

#include "program.h"

namespace torch_gas::tests {
namespace {

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

}  // namespace

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

}  // namespace torch_gas::tests
