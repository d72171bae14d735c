// Relabels a batch by a hash map, as the implementation of the paper does: local ids of the halo
// are given in the order in which its nodes are met. Compared with `_core.subgraph` in kernels.py.
#include <cstdint>
#include <unordered_map>

// rowptr [N+1], col [E] and the nodes of the batch [B] give rowptr [B+1], col, e_id [E_B] and the
// halo [S], whose size is returned.
extern "C" int64_t subgraph(const int64_t* rowptr, const int64_t* col, const int64_t* node,
                            int64_t num_nodes, int64_t* out_rowptr, int64_t* out_col,
                            int64_t* out_e_id, int64_t* halo) {
  std::unordered_map<int64_t, int64_t> local;
  for (int64_t i = 0; i < num_nodes; ++i) local[node[i]] = i;
  int64_t edge = 0, next = num_nodes;
  out_rowptr[0] = 0;
  for (int64_t i = 0; i < num_nodes; ++i) {
    for (int64_t e = rowptr[node[i]]; e < rowptr[node[i] + 1]; ++e, ++edge) {
      const auto [place, is_new] = local.try_emplace(col[e], next);
      if (is_new) halo[next++ - num_nodes] = col[e];
      out_col[edge] = place->second;
      out_e_id[edge] = e;
    }
    out_rowptr[i + 1] = edge;
  }
  return next - num_nodes;
}
