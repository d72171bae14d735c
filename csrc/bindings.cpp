// Everything `torch_gas._C` offers, in one table.
//
// Tensors arrive as addresses (`tensor.data_ptr()`) and sizes, streams as handles, so that this
// module links no libtorch. `torch_gas/_core/` is the only caller: it has checked types, shapes
// and devices and keeps the tensors alive; values (ids, ranges, row pointers) are checked here,
// before anything is written. What several calls take is passed as one argument: `Table`, `Rows`,
// `Sparse`, `Stream`, `Staging`. Every call that loops releases the GIL. Letters: N nodes, E edges,
// P parts, B rows and E_B edges of a batch, M rows moved, C columns.
//
// clang-format off
//   call               reads                                 writes
//   Subgraph           rowptr [N+1], col [E],                -
//                      start, count [P]
//     .write           rowptr [N+1], col [E]                 rowptr [B+1], col, row or 0, e_id [E_B],
//                                                            n_id [B+S]
//   transpose          rowptr [R+1], col [nnz]               colptr [num_cols+1], row, perm [nnz]
//   own_transpose      rowptr [R+1], col, weight [nnz] or 0  end [R]
//   row_pointers       ids [E]                               rowptr [N+1]
//   to_csr             src, dst [E]                          rowptr [N+1], col, perm [E]
//   adjacent_pairs     src [E], dst [E] or rowptr [N+1],     rowptr [N+1], col, weight [E]
//                      weight [E] or 0
//   symmetric          rowptr [N+1], col, weight [U] or 0    rowptr [N+1], col, weight [2 U]
//   stream_parts       rowptr [N+1], col [E], edge_weight    part [N]
//                      [E] or 0, node_weight [N] or 0
//   gather_rows        table [N, C], index [M]               rows [M, C]
//   scatter_rows       index [M], rows [M, C]                table [N, C]
//   add_rows           index [M], rows [M, C]                table [N, C]
//   read_chunks        table [N, C], offset, count [P]       rows [M, C]
//   write_chunks       offset, count [P], rows [M, C]        table [N, C]
//                      (in these, but add_rows, table may be a FileTable)
//   fill_chunks        offset, count [P]                     table [N]
//   read_ahead         index [M], of a FileTable             -
//   clear_rows         offset, count [P]                     table [N, C], a FileTable
//   cuda_*             the first five of these on a stream: table in device or pinned memory, index and rows
//                      in device memory, offset and count in host memory
//   staged_*           the first and the chunks on a stream, by way of a pinned buffer: rows in device
//                      memory, everything else in host memory
//   dropout            x [size]                              out [size]
//   dropout_rows       x [R, C], ids [R]                     out [R, C]
//   product            rowptr [R+1], col [nnz], rows         out [R, H, C]
//   entry_dots         the same, left [R, H, C]              out [nnz, H]
//   entry_softmax      the same, left [R, H], right [.., H]  out [nnz, H]
//   entry_softmax_backward  the same, softmax, grad [nnz, H] grad_left [R, H], grad_entry [nnz, H]
//   reductions         the same, rows [.., C]                mean, variance, least, least_ties, most,
//                                                            most_ties [R, C] or 0
//   reductions_backward  the same, rows [R, C], constant,    out [R, C]
//                      slope, least, grad_least, most,
//                      grad_most [.., C] or 0
//   fingerprint        memory [bytes], several times         -
//   advise_huge_pages  -                                     -
//   Naming, call_name, argument_name: see naming.h
//   HostRegistration   -                                     - (page-locks memory in place)
// clang-format on
//
// Ids, row pointers and positions of edges (e_id, perm) are 32 or 64 bits wide, all of one call
// alike; offset, count, n_id, part and row pointers of pairs are always 64 bits wide.
// adjacent_pairs and transpose may read ids of one width and write the other. Edge weights are read
// in double precision.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "cpu/dropout.h"
#include "cpu/file.h"
#include "cpu/memory.h"
#include "cpu/order.h"
#include "cpu/product.h"
#include "cpu/reductions.h"
#include "cpu/rows.h"
#include "cpu/stream.h"
#include "cpu/subgraph.h"
#include "cpu/symmetric.h"
#ifdef TORCH_GAS_WITH_CUDA
#include "cuda/memory.h"
#include "cuda/rows.h"
#include "cuda/staged.h"
#endif

namespace py = pybind11;

namespace torch_gas {
namespace {

using Address = uintptr_t;
using Unlocked = py::gil_scoped_release;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls f with a value of the id type.
template <class F>
auto dispatch_ids(int bits, const F& f) {
  check_value(bits == 32 || bits == 64, "ids must have 32 or 64 bits, not ", bits);
  return bits == 32 ? f(int32_t{}) : f(int64_t{});
}

std::shared_ptr<Naming> naming_of(const std::string& call, const py::dict& names) {
  auto naming = std::make_shared<Naming>(Naming{call, {}});
  for (const auto& [ours, users] : names) {
    naming->names[ours.cast<std::string>()] = users.cast<std::string>();
  }
  return naming;
}

Table table_at(Address data, DType dtype, int64_t num_rows, int64_t num_cols) {
  return {at<char>(data), dtype, num_rows, num_cols};
}

FileTable file_table_at(int file, int64_t offset, DType dtype, int64_t num_rows, int64_t num_cols) {
  return {file, offset, dtype, num_rows, num_cols};
}

Rows rows_at(Address data, DType dtype, int64_t num_rows) {
  return {at<char>(data), dtype, num_rows};
}

// A subgraph between the two calls: the second writes to memory of a size that the first finds.
using AnySubgraph = std::variant<Subgraph<int32_t>, Subgraph<int64_t>>;

std::unique_ptr<AnySubgraph> subgraph_py(int bits, Address rowptr, Address col, int64_t num_nodes,
                                         int64_t num_edges, Address start, Address count,
                                         int64_t num_parts, int threads) {
  Unlocked unlocked;
  return dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    return std::make_unique<AnySubgraph>(std::in_place_type<Subgraph<T>>, at<T>(rowptr), at<T>(col),
                                         num_nodes, num_edges, at<int64_t>(start),
                                         at<int64_t>(count), num_parts, threads);
  });
}

py::tuple subgraph_sizes_py(const AnySubgraph& subgraph) {
  return std::visit(
      [](const auto& each) {
        return py::make_tuple(each.num_rows(), each.num_edges(), each.halo_size());
      },
      subgraph);
}

void subgraph_write_py(const AnySubgraph& subgraph, Address rowptr, Address col, Address row,
                       Address e_id, Address n_id, bool ascending, int threads) {
  Unlocked unlocked;
  std::visit(
      [&](const auto& each) {
        using T = typename std::decay_t<decltype(each)>::Id;
        each.write(at<T>(rowptr), at<T>(col), at<T>(row), at<T>(e_id), at<int64_t>(n_id), ascending,
                   threads);
      },
      subgraph);
}

void transpose_py(int bits, Address rowptr, Address col, int64_t num_rows, int64_t num_cols,
                  int64_t nnz, int out_bits, Address out_colptr, Address out_row, Address out_perm,
                  int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) {
    dispatch_ids(out_bits, [&](auto out_id) {
      using T = decltype(id);
      using Out = decltype(out_id);
      transpose(at<T>(rowptr), at<T>(col), num_rows, num_cols, nnz, at<Out>(out_colptr),
                at<Out>(out_row), at<Out>(out_perm), threads);
    });
  });
}

bool own_transpose_py(int bits, Address rowptr, Address col, Address weight, DType dtype,
                      int64_t num_rows, int64_t nnz, Address out_end) {
  Unlocked unlocked;
  bool is_own = false;
  dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    const auto find = [&](const auto* weight) {
      is_own = own_transpose(at<const T>(rowptr), at<const T>(col), weight, num_rows, nnz,
                             at<T>(out_end));
    };
    dtype == DType::f64 ? find(at<const double>(weight)) : find(at<const float>(weight));
  });
  return is_own;
}

bool row_pointers_py(int bits, Address ids, int64_t num_edges, int64_t num_nodes, Address rowptr,
                     int threads) {
  Unlocked unlocked;
  bool ascends = false;
  dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    ascends = row_pointers(at<const T>(ids), num_edges, num_nodes, at<T>(rowptr), threads);
  });
  return ascends;
}

void to_csr_py(int bits, Address src, Address dst, int64_t num_nodes, int64_t num_edges,
               Address out_rowptr, Address out_col, Address out_perm, int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    to_csr(at<T>(src), at<T>(dst), num_nodes, num_edges, at<T>(out_rowptr), at<T>(out_col),
           at<T>(out_perm), threads);
  });
}

int64_t adjacent_pairs_py(int bits, Address rowptr, Address dst, Address src, int64_t num_nodes,
                          int64_t num_edges, Address weight, int out_bits, Address out_rowptr,
                          Address out_col, Address out_weight, int threads) {
  Unlocked unlocked;
  return dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    const Edges<T> edges{at<T>(rowptr), at<T>(dst), at<T>(src), num_edges};
    return dispatch_ids(out_bits, [&](auto out_id) {
      return adjacent_pairs(edges, at<double>(weight), num_nodes, at<int64_t>(out_rowptr),
                            at<decltype(out_id)>(out_col), at<double>(out_weight), threads);
    });
  });
}

void symmetric_py(int bits, Address rowptr, Address col, Address weight, int64_t num_nodes,
                  int64_t num_pairs, Address out_rowptr, Address out_col, Address out_weight) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    symmetric(at<int64_t>(rowptr), at<T>(col), at<int64_t>(weight), num_nodes, num_pairs,
              at<T>(out_rowptr), at<T>(out_col), at<T>(out_weight));
  });
}

// Calls `report` after each pass; what it raises ends the call.
void stream_parts_py(int bits, Address rowptr, Address col, Address edge_weight,
                     Address node_weight, int64_t num_nodes, int64_t num_edges, int64_t num_parts,
                     uint64_t seed, const py::function& report, Address out_part) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) {
    using T = decltype(id);
    const StreamedGraph<T> graph{
        at<T>(rowptr), at<T>(col), at<double>(edge_weight), at<int64_t>(node_weight),
        num_nodes,     num_edges};
    const auto locked_report = [&](double between) {
      const py::gil_scoped_acquire locked;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      report(between);
    };
    stream_parts(graph, num_parts, seed, locked_report, at<int64_t>(out_part));
  });
}

template <class T>
void gather_rows_py(const T& table, int bits, Address index, const Rows& rows, int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) { gather_rows(table, at<decltype(id)>(index), rows, threads); });
}

template <class T>
void scatter_rows_py(const T& table, int bits, Address index, const Rows& rows, int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) { scatter_rows(table, at<decltype(id)>(index), rows, threads); });
}

void add_rows_py(const Table& table, int bits, Address index, const Rows& rows, int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) { add_rows(table, at<decltype(id)>(index), rows, threads); });
}

template <class T>
void read_chunks_py(const T& table, Address offset, Address count, int64_t num_parts,
                    const Rows& rows, int threads) {
  Unlocked unlocked;
  read_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, threads);
}

template <class T>
void write_chunks_py(const T& table, Address offset, Address count, int64_t num_parts,
                     const Rows& rows, int threads) {
  Unlocked unlocked;
  write_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, threads);
}

void fill_chunks_py(Address table, int64_t num_rows, Address offset, Address count,
                    int64_t num_parts, int64_t value, int threads) {
  Unlocked unlocked;
  fill_chunks(at<int64_t>(table), num_rows, at<int64_t>(offset), at<int64_t>(count), num_parts,
              value, threads);
}

void read_ahead_py(const FileTable& table, int bits, Address index, int64_t num_ids) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) { read_ahead(table, at<decltype(id)>(index), num_ids); });
}

void clear_rows_py(const FileTable& table, Address offset, Address count, int64_t num_parts) {
  Unlocked unlocked;
  clear_rows(table, at<int64_t>(offset), at<int64_t>(count), num_parts);
}

// The system's refusals are OSError in Python, of the subclass that errno names.
void translate_file_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const FileError& error) {
    PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code, error.what()).ptr());
  }
}

void dropout_py(Address x, Address out, DType dtype, int64_t size, double p, uint64_t seed,
                int threads) {
  Unlocked unlocked;
  dropout(at<char>(x), at<char>(out), dtype, size, p, seed, threads);
}

void dropout_rows_py(Address x, Address ids, Address out, DType dtype, int64_t num_rows,
                     int64_t width, double p, uint64_t key, int threads) {
  Unlocked unlocked;
  dropout_rows(at<char>(x), at<int64_t>(ids), at<char>(out), dtype, num_rows, width, p, key,
               threads);
}

// A sparse matrix and the type of what it is multiplied with, as they arrive.
struct SparseArgument {
  int bits;
  DType dtype;
  Address rowptr, col, order, end;
  int64_t num_rows, num_cols, nnz, num_numbers;
};

// Calls f(matrix) without the lock of the interpreter.
template <class F>
void with_sparse(const SparseArgument& from, const F& f) {
  Unlocked unlocked;
  dispatch_ids(from.bits, [&](auto id) {
    using I = decltype(id);
    f(Sparse<I>{at<I>(from.rowptr), at<I>(from.col), at<I>(from.order), from.num_rows,
                from.num_cols, from.nnz, from.num_numbers, at<I>(from.end)});
  });
}

// Calls f(matrix, T{}) with the matrix and a value of the element type.
template <class F>
void dispatch_sparse(const SparseArgument& from, const F& f) {
  check_value(from.dtype == DType::f32 || from.dtype == DType::f64,
              "elements must be float32 or float64");
  with_sparse(from, [&](const auto& matrix) {
    from.dtype == DType::f32 ? f(matrix, float{}) : f(matrix, double{});
  });
}

void product_py(const SparseArgument& from, Address weight, Address rows, Address gate, Address out,
                int64_t heads, int64_t width, bool mean, int threads) {
  const auto run = [&](const auto& matrix, auto row_value, auto sum_value) {
    using R = decltype(row_value);
    using T = decltype(sum_value);
    product(matrix, at<const T>(weight), at<const R>(rows), at<const R>(gate), at<R>(out), heads,
            width, mean, threads);
  };
  if (from.dtype == DType::bf16) {  // of which weights are float
    return with_sparse(from, [&](const auto& matrix) { run(matrix, BFloat16{}, float{}); });
  }
  dispatch_sparse(from, [&](const auto& matrix, auto zero) { run(matrix, zero, zero); });
}

void entry_dots_py(const SparseArgument& from, Address left, Address right, Address out,
                   int64_t heads, int64_t width, int threads) {
  dispatch_sparse(from, [&](const auto& matrix, auto zero) {
    using T = decltype(zero);
    entry_dots(matrix, at<const T>(left), at<const T>(right), at<T>(out), heads, width, threads);
  });
}

void entry_softmax_py(const SparseArgument& from, Address left, Address right, double slope,
                      Address out, int64_t heads, int threads) {
  dispatch_sparse(from, [&](const auto& matrix, auto zero) {
    using T = decltype(zero);
    entry_softmax(matrix, at<const T>(left), at<const T>(right), static_cast<T>(slope), at<T>(out),
                  heads, threads);
  });
}

void entry_softmax_backward_py(const SparseArgument& from, Address left, Address right,
                               double slope, Address softmax, Address grad, Address grad_left,
                               Address grad_entry, int64_t heads, int threads) {
  dispatch_sparse(from, [&](const auto& matrix, auto zero) {
    using T = decltype(zero);
    entry_softmax_backward(matrix, at<const T>(left), at<const T>(right), static_cast<T>(slope),
                           at<const T>(softmax), at<const T>(grad), at<T>(grad_left),
                           at<T>(grad_entry), heads, threads);
  });
}

void reductions_py(const SparseArgument& from, Address rows, Address mean, Address variance,
                   Address least, Address least_ties, Address most, Address most_ties,
                   int64_t width, int threads) {
  dispatch_sparse(from, [&](const auto& matrix, auto zero) {
    using T = decltype(zero);
    const Reductions<T> out{at<T>(mean),       at<T>(variance), at<T>(least),
                            at<T>(least_ties), at<T>(most),     at<T>(most_ties)};
    reductions(matrix, at<const T>(rows), out, width, threads);
  });
}

void reductions_backward_py(const SparseArgument& from, Address rows, Address constant,
                            Address slope, Address least, Address grad_least, Address most,
                            Address grad_most, Address out, int64_t width, int threads) {
  dispatch_sparse(from, [&](const auto& matrix, auto zero) {
    using T = decltype(zero);
    const ReductionsGradient<T> grad{at<const T>(constant), at<const T>(slope),
                                     at<const T>(least),    at<const T>(grad_least),
                                     at<const T>(most),     at<const T>(grad_most)};
    reductions_backward(matrix, at<const T>(rows), grad, at<T>(out), width, threads);
  });
}

// Of addresses and sizes in turn.
uint64_t fingerprint_py(const py::args& memory, int64_t lines, int threads) {
  std::vector<uint64_t> sums;
  for (const auto& number : memory) sums.push_back(number.cast<uint64_t>());
  Unlocked unlocked;
  for (size_t i = 0; i + 1 < sums.size(); i += 2) {
    sums[i] = fingerprint(sums[i], static_cast<int64_t>(sums[i + 1]), lines, threads);
  }
  return fingerprint(reinterpret_cast<Address>(sums.data()),
                     static_cast<int64_t>(sums.size() * sizeof(uint64_t)), 0, 1);
}

#ifdef TORCH_GAS_WITH_CUDA
// Destroyed from the last member to the first: the owner of the memory goes after it is unlocked.
struct HostRegistration {
  py::object owner;
  cuda::HostRegistration registration;
};

std::unique_ptr<HostRegistration> register_py(py::object owner, Address address, uint64_t bytes,
                                              int device) {
  return std::unique_ptr<HostRegistration>(
      new HostRegistration{std::move(owner), {at<void>(address), bytes, device}});
}

cuda::Stream stream_at(int device, Address stream) {
  return {device, at<void>(stream)};
}

cuda::Staging staging_at(Address buffer, int64_t bytes, Address stream) {
  return {at<char>(buffer), bytes, at<void>(stream)};
}

void cuda_gather_rows_py(const Table& table, int bits, Address index, const Rows& rows,
                         const cuda::Stream& stream, bool host_table) {
  Unlocked unlocked;
  cuda::gather_rows(table, {at<void>(index), bits}, rows, stream, host_table);
}

void cuda_scatter_rows_py(const Table& table, int bits, Address index, const Rows& rows,
                          const cuda::Stream& stream, bool host_table) {
  Unlocked unlocked;
  cuda::scatter_rows(table, {at<void>(index), bits}, rows, stream, host_table);
}

void cuda_add_rows_py(const Table& table, int bits, Address index, Address order, const Rows& rows,
                      const cuda::Stream& stream, bool host_table) {
  Unlocked unlocked;
  cuda::add_rows(table, {at<void>(index), bits}, at<int64_t>(order), rows, stream, host_table);
}

void cuda_read_chunks_py(const Table& table, Address offset, Address count, int64_t num_parts,
                         const Rows& rows, const cuda::Stream& stream, bool host_table) {
  Unlocked unlocked;
  cuda::read_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, stream,
                    host_table);
}

void cuda_write_chunks_py(const Table& table, Address offset, Address count, int64_t num_parts,
                          const Rows& rows, const cuda::Stream& stream, bool host_table) {
  Unlocked unlocked;
  cuda::write_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, stream,
                     host_table);
}

template <class T>
void staged_gather_rows_py(const T& table, int bits, Address index, const Rows& rows,
                           const cuda::Stream& stream, const cuda::Staging& staging, int threads) {
  Unlocked unlocked;
  dispatch_ids(bits, [&](auto id) {
    cuda::staged_gather_rows(table, at<decltype(id)>(index), rows, stream, staging, threads);
  });
}

template <class T>
void staged_read_chunks_py(const T& table, Address offset, Address count, int64_t num_parts,
                           const Rows& rows, const cuda::Stream& stream,
                           const cuda::Staging& staging, int threads) {
  Unlocked unlocked;
  cuda::staged_read_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, stream,
                           staging, threads);
}

template <class T>
void staged_write_chunks_py(const T& table, Address offset, Address count, int64_t num_parts,
                            const Rows& rows, const cuda::Stream& stream,
                            const cuda::Staging& staging, int threads) {
  Unlocked unlocked;
  cuda::staged_write_chunks(table, at<int64_t>(offset), at<int64_t>(count), num_parts, rows, stream,
                            staging, threads);
}
#endif

}  // namespace
}  // namespace torch_gas

PYBIND11_MODULE(_C, m) {
  using namespace torch_gas;
  py::register_exception_translator(&translate_file_error);
  ThreadPool::get();  // now, so that a fork never finds it half made

  py::enum_<DType>(m, "DType")
      .value("f32", DType::f32)
      .value("f64", DType::f64)
      .value("f16", DType::f16)
      .value("bf16", DType::bf16)
      .value("i8", DType::i8)
      .value("f8_e4m3", DType::f8_e4m3)
      .value("f8_e5m2", DType::f8_e5m2)
      .value("bytes", DType::bytes);

  py::class_<Naming, std::shared_ptr<Naming>>(m, "Naming")
      .def(py::init(&naming_of))
      .def("enter", [](const std::shared_ptr<Naming>& naming) { namings().push_back(naming); })
      .def("leave", [](const Naming&) { namings().pop_back(); });
  m.def("call_name", &call_name);
  m.def("argument_name", &argument_name);

  py::class_<Table>(m, "Table").def(py::init(&table_at));
  py::class_<FileTable>(m, "FileTable").def(py::init(&file_table_at));
  py::class_<Rows>(m, "Rows").def(py::init(&rows_at));
  py::class_<SparseArgument>(m, "Sparse")
      .def(py::init<int, DType, Address, Address, Address, Address, int64_t, int64_t, int64_t,
                    int64_t>());
  py::class_<AnySubgraph>(m, "Subgraph")
      .def(py::init(&subgraph_py))
      .def_property_readonly("sizes", &subgraph_sizes_py)
      .def("write", &subgraph_write_py);
  m.def("transpose", &transpose_py);
  m.def("own_transpose", &own_transpose_py);
  m.def("row_pointers", &row_pointers_py);
  m.def("to_csr", &to_csr_py);
  m.def("adjacent_pairs", &adjacent_pairs_py);
  m.def("symmetric", &symmetric_py);
  m.def("stream_parts", &stream_parts_py);
  m.attr("stream_passes") = kMostPasses;
  m.def("gather_rows", &gather_rows_py<Table>);
  m.def("gather_rows", &gather_rows_py<FileTable>);
  m.def("scatter_rows", &scatter_rows_py<Table>);
  m.def("scatter_rows", &scatter_rows_py<FileTable>);
  m.def("add_rows", &add_rows_py);
  m.def("read_chunks", &read_chunks_py<Table>);
  m.def("read_chunks", &read_chunks_py<FileTable>);
  m.def("write_chunks", &write_chunks_py<Table>);
  m.def("write_chunks", &write_chunks_py<FileTable>);
  m.def("fill_chunks", &fill_chunks_py);
  m.def("read_ahead", &read_ahead_py);
  m.def("clear_rows", &clear_rows_py);
  m.def("noted_failure", &noted_failure);
  m.def("forget_failure", &forget_failure);
  m.def("dropout", &dropout_py);
  m.def("dropout_rows", &dropout_rows_py);
  m.def("product", &product_py);
  m.def("entry_dots", &entry_dots_py);
  m.def("entry_softmax", &entry_softmax_py);
  m.def("entry_softmax_backward", &entry_softmax_backward_py);
  m.def("reductions", &reductions_py);
  m.def("reductions_backward", &reductions_backward_py);
  m.def("fingerprint", &fingerprint_py, py::arg("lines"), py::arg("threads"));
  m.def("advise_huge_pages", &advise_huge_pages);
#ifdef TORCH_GAS_WITH_CUDA
  m.attr("has_cuda") = true;
  py::class_<cuda::Stream>(m, "Stream").def(py::init(&stream_at));
  py::class_<cuda::Staging>(m, "Staging").def(py::init(&staging_at));
  m.def("cuda_gather_rows", &cuda_gather_rows_py);
  m.def("cuda_scatter_rows", &cuda_scatter_rows_py);
  m.def("cuda_add_rows", &cuda_add_rows_py);
  m.def("cuda_read_chunks", &cuda_read_chunks_py);
  m.def("cuda_write_chunks", &cuda_write_chunks_py);
  m.def("staged_gather_rows", &staged_gather_rows_py<Table>);
  m.def("staged_gather_rows", &staged_gather_rows_py<FileTable>);
  m.def("staged_read_chunks", &staged_read_chunks_py<Table>);
  m.def("staged_read_chunks", &staged_read_chunks_py<FileTable>);
  m.def("staged_write_chunks", &staged_write_chunks_py<Table>);
  m.def("staged_write_chunks", &staged_write_chunks_py<FileTable>);
  py::class_<HostRegistration>(m, "HostRegistration").def(py::init(&register_py));
#else
  m.attr("has_cuda") = false;
#endif
}
