// Orders of edges: by destination, and by source. `T` is int32_t or int64_t. Nothing is written
// before every argument has been checked.
#pragma once

#include <cstdint>

namespace torch_gas {

// The transpose of a CSR matrix [R, num_cols]: colptr [num_cols+1], row [nnz], perm [nnz] with
// row-major order inside each column; perm holds positions in `col`. `Out` is int32_t or int64_t.
template <class T, class Out>
void transpose(const T* rowptr, const T* col, int64_t num_rows, int64_t num_cols, int64_t nnz,
               Out* out_colptr, Out* out_row, Out* out_perm, int threads);

// Edges sorted by destination, stable: rowptr [num_nodes+1], col [E], perm [E].
template <class T>
void to_csr(const T* src, const T* dst, int64_t num_nodes, int64_t num_edges, T* out_rowptr,
            T* out_col, T* out_perm, int threads);

}  // namespace torch_gas
