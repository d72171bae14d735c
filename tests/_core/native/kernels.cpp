// Runs every kernel of csrc/cpu on random and on empty inputs, for one and for several threads, and
// from several threads at once. Memory ends where arrays end, so that AddressSanitizer sees each
// access beyond them; results must be those of one thread, and refused calls must write nothing.
// Usage: kernels [rounds] [largest size]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dropout.h"
#include "cpu/memory.h"
#include "cpu/order.h"
#include "cpu/product.h"
#include "cpu/reductions.h"
#include "cpu/rows.h"
#include "cpu/stream.h"
#include "cpu/subgraph.h"
#include "cpu/symmetric.h"

namespace torch_gas {
namespace {

using Bytes = std::vector<char>;
using Random = std::mt19937_64;

constexpr DType kFloats[] = {DType::f32, DType::f64, DType::f16, DType::bf16};

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "kernels: %s\n", what);
  std::exit(1);
}

int64_t below(Random& random, int64_t bound) {
  return bound <= 0 ? 0 : static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

template <class T>
std::vector<T> numbers(Random& random, int64_t size) {
  std::uniform_real_distribution<double> unit(-1, 1);
  std::vector<T> out(size);
  for (T& x : out) x = static_cast<T>(unit(random));
  return out;
}

template <class I>
std::vector<I> ids(Random& random, int64_t size, int64_t bound) {
  std::vector<I> out(bound > 0 ? size : 0);
  for (I& id : out) id = static_cast<I>(below(random, bound));
  return out;
}

template <class I>
std::vector<I> distinct_ids(Random& random, int64_t size, int64_t bound) {
  std::vector<I> all(bound);
  std::iota(all.begin(), all.end(), I{0});
  std::shuffle(all.begin(), all.end(), random);
  all.resize(std::min(size, bound));
  return all;
}

template <class T>
void append(Bytes& result, const std::vector<T>& values) {
  const char* data = reinterpret_cast<const char*>(values.data());
  result.insert(result.end(), data, data + values.size() * sizeof(T));
}

// Rows of random numbers of a type, whose bits are numbers of that type.
Bytes random_rows(Random& random, DType dtype, int64_t count) {
  Bytes out(count * element_size(dtype));
  const std::vector<float> values = numbers<float>(random, count);
  dispatch_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < count; ++i) {
      const T x = convert<float, T>(values[i]);
      std::memcpy(out.data() + i * sizeof(T), &x, sizeof(T));
    }
  });
  return out;
}

template <class I>
struct Graph {
  int64_t num_rows, num_cols;
  std::vector<I> rowptr, col;
  int64_t nnz() const { return static_cast<int64_t>(col.size()); }
};

template <class I>
Graph<I> random_graph(Random& random, int64_t num_rows, int64_t num_cols, int64_t num_edges) {
  Graph<I> graph{num_rows, num_cols, std::vector<I>(num_rows + 1), {}};
  if (num_cols == 0 || num_rows == 0) num_edges = 0;
  const std::vector<I> dst = ids<I>(random, num_edges, num_rows);
  for (const I row : dst) ++graph.rowptr[row + 1];
  std::partial_sum(graph.rowptr.begin(), graph.rowptr.end(), graph.rowptr.begin());
  graph.col = ids<I>(random, num_edges, num_cols);
  return graph;
}

// Ranges of rows that do not overlap, in any order; some are empty.
struct Parts {
  std::vector<int64_t> offset, count;
  int64_t total = 0;
};

Parts random_parts(Random& random, int64_t num_rows) {
  std::vector<std::pair<int64_t, int64_t>> found;
  for (int64_t at = 0; at < num_rows;) {
    const int64_t length = std::min(num_rows - at, below(random, num_rows / 3 + 2));
    if (random() % 2) found.emplace_back(at, length);
    at += std::max<int64_t>(length, 1);
  }
  std::shuffle(found.begin(), found.end(), random);
  Parts parts;
  for (const auto& [offset, count] : found) {
    parts.offset.push_back(offset);
    parts.count.push_back(count);
    parts.total += count;
  }
  return parts;
}

// A kernel on inputs that a seed decides; returns the bytes of its result.
using Kernel = std::function<Bytes(Random&, int64_t size, int threads)>;

bool is_sum(DType table, DType rows) {
  return element_size(table) >= 4 && element_size(rows) <= element_size(table);
}

template <class I>
Bytes rows(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t width = below(random, 9), num_rows = below(random, size) + 1;
  for (const DType table_type : kFloats) {
    const DType rows_type = random() % 2 ? table_type : kFloats[random() % 4];
    const bool plain = table_type == rows_type && random() % 2;  // rows as bytes
    Bytes memory = random_rows(random, table_type, num_rows * width);
    const auto columns = [&](DType dtype) { return plain ? width * element_size(dtype) : width; };
    const auto type = [&](DType dtype) { return plain ? DType::bytes : dtype; };
    const Table table{memory.data(), type(table_type), num_rows, columns(table_type)};
    const auto batch = [&](Bytes& at, int64_t count) {
      return Rows{at.data(), type(rows_type), count};
    };

    const std::vector<I> index = ids<I>(random, size, num_rows);
    Bytes pulled(index.size() * width * element_size(rows_type));
    gather_rows(table, index.data(), batch(pulled, index.size()), threads);
    append(result, pulled);

    const std::vector<I> targets = distinct_ids<I>(random, size, num_rows);
    Bytes pushed = random_rows(random, rows_type, targets.size() * width);
    scatter_rows(table, targets.data(), batch(pushed, targets.size()), threads);
    append(result, memory);

    if (is_sum(table_type, rows_type)) {
      const Table sums{memory.data(), table_type, num_rows, width};
      for (const std::vector<I>& each : {index, targets}) {
        Bytes added = random_rows(random, rows_type, each.size() * width);
        add_rows(sums, each.data(), Rows{added.data(), rows_type, int64_t(each.size())}, threads);
      }
      append(result, memory);
    }

    const Parts parts = random_parts(random, num_rows);
    Bytes chunk = random_rows(random, rows_type, parts.total * width);
    write_chunks(table, parts.offset.data(), parts.count.data(), parts.offset.size(),
                 batch(chunk, parts.total), threads);
    append(result, memory);
    read_chunks(table, parts.offset.data(), parts.count.data(), parts.offset.size(),
                batch(chunk, parts.total), threads);
    append(result, chunk);
    Bytes times(num_rows * sizeof(int64_t));
    fill_chunks(reinterpret_cast<int64_t*>(times.data()), num_rows, parts.offset.data(),
                parts.count.data(), parts.offset.size(), 7, threads);
    append(result, times);

    const Bytes before = memory;
    for (const int64_t bad : {int64_t{-1}, num_rows}) {
      std::vector<I> wrong{0, static_cast<I>(bad)};
      Bytes two = random_rows(random, rows_type, 2 * width);
      bool refused = false;
      try {
        scatter_rows(table, wrong.data(), batch(two, 2), threads);
      } catch (const std::exception&) {
        refused = true;
      }
      require(refused && memory == before, "a push of a wrong id must write nothing");
      if (!is_sum(table_type, rows_type)) continue;
      refused = false;
      try {
        add_rows(Table{memory.data(), table_type, num_rows, width}, wrong.data(),
                 Rows{two.data(), rows_type, 2}, threads);
      } catch (const std::exception&) {
        refused = true;
      }
      require(refused && memory == before, "a sum with a wrong id must write nothing");
    }
  }
  return result;
}

template <class I>
Bytes subgraphs(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t num_nodes = below(random, size) + 1;
  const Graph<I> graph = random_graph<I>(random, num_nodes, num_nodes, below(random, 8 * size));
  const Parts parts = random_parts(random, num_nodes);
  const Subgraph<I> found(graph.rowptr.data(), graph.col.data(), num_nodes, graph.nnz(),
                          parts.offset.data(), parts.count.data(), parts.offset.size(), threads);
  for (const bool ascending : {false, true}) {
    std::vector<I> rowptr(found.num_rows() + 1), col(found.num_edges()), row(found.num_edges());
    std::vector<I> e_id(found.num_edges());
    std::vector<int64_t> n_id(found.num_rows() + found.halo_size());
    found.write(rowptr.data(), col.data(), random() % 2 ? row.data() : nullptr, e_id.data(),
                n_id.data(), ascending, threads);
    append(result, rowptr), append(result, col), append(result, e_id), append(result, n_id);
    append(result, row);
  }
  return result;
}

template <class I>
Bytes orders(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t num_rows = below(random, size), num_cols = below(random, size);
  const Graph<I> graph = random_graph<I>(random, num_rows, num_cols, below(random, 8 * size));
  std::vector<I> colptr(num_cols + 1), row(graph.nnz()), perm(graph.nnz());
  transpose<I, I>(graph.rowptr.data(), graph.col.data(), num_rows, num_cols, graph.nnz(),
                  colptr.data(), row.data(), perm.data(), threads);
  append(result, colptr), append(result, row), append(result, perm);
  std::vector<I> end(num_rows);
  const std::vector<float> weight(graph.nnz(), 1.f);
  const bool is_own = own_transpose<I, float>(graph.rowptr.data(), graph.col.data(),
                                              random() % 2 ? weight.data() : nullptr, num_rows,
                                              graph.nnz(), end.data());
  append(result, std::vector<I>{static_cast<I>(is_own)});
  const std::vector<I> src = ids<I>(random, size, num_rows), dst = ids<I>(random, size, num_rows);
  std::vector<I> rowptr(num_rows + 1), col(src.size()), order(src.size());
  to_csr<I>(src.data(), dst.data(), num_rows, src.size(), rowptr.data(), col.data(), order.data(),
            threads);
  append(result, rowptr), append(result, col), append(result, order);
  std::vector<I> ends = src;
  if (random() % 4) std::sort(ends.begin(), ends.end());
  if (row_pointers<I>(ends.data(), ends.size(), num_rows, rowptr.data(), threads)) {
    append(result, rowptr);
  }
  return result;
}

template <class I>
Bytes pairs(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t num_nodes = below(random, size) + 1;
  const Graph<I> graph = random_graph<I>(random, num_nodes, num_nodes, below(random, 4 * size));
  std::vector<double> weight = numbers<double>(random, graph.nnz());
  for (double& w : weight) w = std::abs(w);
  const bool weighted = random() % 2;
  std::vector<int64_t> rowptr(num_nodes + 1);
  std::vector<I> col(graph.nnz());
  std::vector<double> sums(weighted ? graph.nnz() : 0);
  const Edges<I> edges{graph.rowptr.data(), nullptr, graph.col.data(), graph.nnz()};
  const int64_t found =
      adjacent_pairs<I, I>(edges, weighted ? weight.data() : nullptr, num_nodes, rowptr.data(),
                           col.data(), weighted ? sums.data() : nullptr, threads);
  col.resize(found);
  col.shrink_to_fit();
  std::vector<I> both_rowptr(num_nodes + 1), both(2 * found);
  symmetric<I>(rowptr.data(), col.data(), nullptr, num_nodes, found, both_rowptr.data(),
               both.data(), nullptr);
  append(result, rowptr), append(result, col), append(result, both_rowptr), append(result, both);

  std::vector<int64_t> part(num_nodes);
  const StreamedGraph<I> streamed{both_rowptr.data(), both.data(), nullptr, nullptr,
                                  num_nodes,          2 * found};
  stream_parts<I>(streamed, below(random, num_nodes) + 1, random(), [](double) {}, part.data());
  append(result, part);
  return result;
}

template <class I, class T>
Bytes products(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t num_rows = below(random, size), num_cols = below(random, size) + 1;
  const int64_t heads = below(random, 3) + 1, width = below(random, 9);
  const Graph<I> graph = random_graph<I>(random, num_rows, num_cols, below(random, 4 * size));
  const std::vector<I> order = distinct_ids<I>(random, graph.nnz(), graph.nnz());
  const Sparse<I> matrix{graph.rowptr.data(),
                         graph.col.data(),
                         random() % 2 ? order.data() : nullptr,
                         num_rows,
                         num_cols,
                         graph.nnz(),
                         graph.nnz()};
  const std::vector<T> weight = numbers<T>(random, graph.nnz() * heads);
  const std::vector<T> left = numbers<T>(random, num_rows * heads * width);
  const std::vector<T> right = numbers<T>(random, num_cols * heads * width);
  std::vector<T> out(num_rows * heads * width), dots(graph.nnz() * heads);
  const T* gate = random() % 2 ? left.data() : nullptr;
  const bool mean = random() % 2;
  Sparse<I> part = matrix;  // the first entry of each row
  std::vector<I> end(graph.rowptr.begin(), graph.rowptr.end() - 1);
  for (int64_t i = 0; i < num_rows; ++i) end[i] += end[i] < graph.rowptr[i + 1];
  part.end = end.data();
  product<I, T, T>(part, weight.data(), right.data(), gate, out.data(), heads, width, mean,
                   threads);
  append(result, out);
  product<I, T, T>(matrix, random() % 2 ? weight.data() : nullptr, right.data(), gate, out.data(),
                   heads, width, mean, threads);
  entry_dots<I, T>(matrix, left.data(), right.data(), dots.data(), heads, width, threads);
  append(result, out), append(result, dots);

  const std::vector<T> to = numbers<T>(random, num_rows * heads);
  const std::vector<T> from = numbers<T>(random, num_cols * heads);
  std::vector<T> softmax(graph.nnz() * heads), grad_to(to.size()), grad_entry(softmax.size());
  entry_softmax<I, T>(matrix, to.data(), from.data(), T(0.2), softmax.data(), heads, threads);
  entry_softmax_backward<I, T>(matrix, to.data(), from.data(), T(0.2), softmax.data(),
                               weight.data(), grad_to.data(), grad_entry.data(), heads, threads);
  append(result, softmax), append(result, grad_to), append(result, grad_entry);
  return result;
}

template <class I, class T>
Bytes reduced(Random& random, int64_t size, int threads) {
  Bytes result;
  const int64_t num_rows = below(random, size), num_cols = below(random, size) + 1;
  const int64_t width = below(random, 20);
  const Graph<I> graph = random_graph<I>(random, num_rows, num_cols, below(random, 4 * size));
  const Sparse<I> matrix{graph.rowptr.data(), graph.col.data(), nullptr, num_rows, num_cols,
                         graph.nnz(),         graph.nnz()};
  const std::vector<T> from = numbers<T>(random, num_cols * width);
  std::vector<std::vector<T>> out(6, std::vector<T>(num_rows * width));
  const bool has_mean = random() % 2, has_variance = has_mean && random() % 2;
  const bool has_least = random() % 2, has_most = random() % 2;
  reductions<I, T>(matrix, from.data(),
                   {has_mean ? out[0].data() : nullptr, has_variance ? out[1].data() : nullptr,
                    has_least ? out[2].data() : nullptr, has_least ? out[3].data() : nullptr,
                    has_most ? out[4].data() : nullptr, has_most ? out[5].data() : nullptr},
                   width, threads);
  for (const std::vector<T>& each : out) append(result, each);

  std::vector<T> grad(num_rows * width);
  const std::vector<T> at = numbers<T>(random, num_rows * width);
  reductions_backward<I, T>(matrix, at.data(),
                            {has_mean ? from.data() : nullptr, has_variance ? from.data() : nullptr,
                             has_least ? from.data() : nullptr, has_least ? from.data() : nullptr,
                             has_most ? from.data() : nullptr, has_most ? from.data() : nullptr},
                            grad.data(), width, threads);
  append(result, grad);
  return result;
}

Bytes dropouts(Random& random, int64_t size, int threads) {
  Bytes result;
  for (const DType dtype : kFloats) {
    const int64_t count = below(random, 8 * size);
    Bytes x = random_rows(random, dtype, count), out(x.size());
    const double p = static_cast<double>(below(random, 101)) / 100;
    dropout(x.data(), out.data(), dtype, count, p, random(), threads);
    append(result, out);
    dropout(x.data(), x.data(), dtype, count, p, random(), threads);  // in place
    append(result, x);
    const int64_t width = below(random, 12), num_rows = width == 0 ? 0 : count / width;
    std::vector<int64_t> ids(num_rows);
    for (int64_t& id : ids) id = static_cast<int64_t>(random());
    dropout_rows(x.data(), ids.data(), out.data(), dtype, num_rows, width, p, random(), threads);
    append(result, out);
  }
  return result;
}

Bytes fingerprints(Random& random, int64_t size, int threads) {
  Bytes result;
  for (const int64_t bytes :
       {int64_t{0}, int64_t{1}, below(random, 64), below(random, 16 * size)}) {
    Bytes memory(bytes);
    for (char& byte : memory) byte = static_cast<char>(random());
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    const int64_t few = below(random, 9);
    for (const int64_t lines : {int64_t{0}, int64_t{1}, few, bytes / 64, INT64_MAX}) {
      const uint64_t found = fingerprint(address, bytes, lines, threads);
      append(result, std::vector<uint64_t>{found});
      if (bytes > 0) {
        ++memory.back();  // which every sample holds
        require(fingerprint(address, bytes, lines, threads) != found,
                "a byte more is another number");
      }
    }
  }
  return result;
}

const struct {
  const char* name;
  Kernel run;
} kKernels[] = {
    {"rows", rows<int32_t>},
    {"rows", rows<int64_t>},
    {"subgraphs", subgraphs<int32_t>},
    {"subgraphs", subgraphs<int64_t>},
    {"orders", orders<int32_t>},
    {"orders", orders<int64_t>},
    {"pairs", pairs<int32_t>},
    {"pairs", pairs<int64_t>},
    {"products", products<int32_t, float>},
    {"products", products<int64_t, float>},
    {"products", products<int32_t, double>},
    {"products", products<int64_t, double>},
    {"reductions", reduced<int32_t, float>},
    {"reductions", reduced<int64_t, float>},
    {"reductions", reduced<int32_t, double>},
    {"reductions", reduced<int64_t, double>},
    {"dropouts", dropouts},
    {"fingerprints", fingerprints},
};

void check(uint64_t seed, int64_t size) {
  for (const auto& kernel : kKernels) {
    const auto run = [&](int threads) {
      Random random(seed);
      return kernel.run(random, size, threads);
    };
    const Bytes wanted = run(1);
    require(run(2) == wanted && run(5) == wanted, kernel.name);
  }
}

}  // namespace
}  // namespace torch_gas

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 3;
  const int64_t largest = argc > 2 ? std::atoll(argv[2]) : 20000;
  for (const int64_t size : {int64_t{1}, int64_t{2}, int64_t{70}}) {
    for (int seed = 0; seed < 20; ++seed) torch_gas::check(seed, size);
  }
  for (int seed = 0; seed < rounds; ++seed) torch_gas::check(seed, largest);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([=] { torch_gas::check(100 + caller, largest); });
  }
  for (std::thread& caller : callers) caller.join();
  std::puts("all kernels agree");
}
