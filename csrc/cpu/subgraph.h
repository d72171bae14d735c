// Subgraphs and orders of a graph in CSR form, whose rows are destinations and columns sources.
// `T` is int32_t or int64_t. Nothing is written before every argument has been checked.
#pragma once

#include <cstdint>
#include <vector>

#include "../ranges.h"

namespace torch_gas {

// The rows and the edges of a batch, as ranges of the rows and of the edges of the graph.
struct BatchRanges {
  Ranges rows;   // B rows
  Ranges edges;  // E_B edges
};

// Checks the ranges and the row pointers that they touch.
template <class T>
BatchRanges batch_ranges(const T* rowptr, int64_t num_nodes, int64_t num_edges,
                         const int64_t* start, const int64_t* count, int64_t num_ranges,
                         int threads);

// Writes the one-hop subgraph of the batch and returns its halo, ascending.
//   rowptr [N+1], col [E]                 read
//   lookup [N]                            workspace: any content before, arbitrary content after
//   out_rowptr [B+1], out_col [E_B]       local ids: the rows of the batch in order, then the halo
//   out_e_id [E_B]                        positions of the edges in `col`
template <class T>
std::vector<int64_t> subgraph(const T* rowptr, const T* col, int64_t num_nodes,
                              const BatchRanges& batch, T* lookup, T* out_rowptr, T* out_col,
                              int64_t* out_e_id, int threads);

// The transpose of a CSR matrix [R, num_cols]: colptr [num_cols+1], row [nnz], perm [nnz] with
// row-major order inside each column; perm holds positions in `col`.
template <class T>
void transpose(const T* rowptr, const T* col, int64_t num_rows, int64_t num_cols, int64_t nnz,
               T* out_colptr, T* out_row, int64_t* out_perm, int threads);

// Edges sorted by destination, stable: rowptr [num_nodes+1], col [E], perm [E].
template <class T>
void to_csr(const T* src, const T* dst, int64_t num_nodes, int64_t num_edges, T* out_rowptr,
            T* out_col, int64_t* out_perm, int threads);

}  // namespace torch_gas
