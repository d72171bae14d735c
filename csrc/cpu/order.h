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

// Whether the first num_rows columns of a CSR matrix [num_rows, C] are a matrix that `transpose`
// would give again: columns ascend in each row, and the weights of entries that mirror each other
// have the same bits. If so, out_end [num_rows] says where the entries of these columns end in each
// row; else it holds nothing of use. weight [nnz] is float or double, or null.
template <class T, class W>
bool own_transpose(const T* rowptr, const T* col, const W* weight, int64_t num_rows, int64_t nnz,
                   T* out_end);

// Where the edges of each node start in the ascending ids of one of their ends, out_rowptr
// [num_nodes+1]. False, and nothing of use there, where an id is no node or below the one before.
template <class T>
bool row_pointers(const T* ids, int64_t size, int64_t num_nodes, T* out_rowptr, int threads);

// Edges sorted by destination, stable: rowptr [num_nodes+1], col [E], perm [E].
template <class T>
void to_csr(const T* src, const T* dst, int64_t num_nodes, int64_t num_edges, T* out_rowptr,
            T* out_col, T* out_perm, int threads);

}  // namespace torch_gas
