#include "order.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "../ranges.h"
#include "memory.h"

namespace torch_gas {
namespace {

// A bucket of keys at a time: its entries stay in the second-level cache while they are ordered.
constexpr int64_t kMostBuckets = 256, kEntriesOfBucket = 8192;

constexpr int64_t kLine = 64;  // bytes that caches move together

// What is sorted: positions 0 .. size-1, by keys in [0, num_keys).
template <class T>
struct Keys {
  const char* call;
  const char* name;
  const T* key;
  int64_t size;
  int64_t num_keys;
};

template <class I>
struct Entry {
  I key, value, position;
};

// Stable sort by key: ptr [num_keys+1], value [size], perm [size]. for_each(begin, end, f) calls
// f(position, value) on positions [begin, end) in order. `I` holds all keys, values and positions.
//
// Entries are first brought into buckets of neighbouring keys, because writing them to places all
// over the result would miss the caches. Every piece of the positions has a histogram over the
// buckets of its own, and comes after the pieces before it in each: so the order is the same for
// any number of pieces.
template <class I, class T, class Out, class ForEach>
void sort_by_key(const Keys<T>& keys, int threads, Out* ptr, Out* out_value, Out* out_perm,
                 const ForEach& for_each) {
  const T* const key = keys.key;
  const int64_t size = keys.size, num_keys = keys.num_keys;
  const int64_t most = std::clamp<int64_t>(size / kEntriesOfBucket, 1, kMostBuckets);
  int bits = 0;  // of a key that tell it from others of its bucket
  while ((num_keys - 1) >> bits >= most) ++bits;
  const int64_t num_buckets = num_keys > 0 ? ((num_keys - 1) >> bits) + 1 : 0;

  const Pieces pieces(size, kGrain, threads);
  std::vector<I> next(pieces.count * num_buckets);
  FirstBad bad;
  parallel_for(pieces.count, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      I* const histogram = next.data() + piece * num_buckets;
      for (int64_t i = pieces.begin(piece); i < pieces.begin(piece + 1); ++i) {
        if (!in_range(key[i], num_keys)) return bad.report(i);
        ++histogram[key[i] >> bits];
      }
    }
  });
  check_reported(bad, keys.call, keys.name, key, num_keys);

  std::vector<int64_t> first_of(num_buckets + 1);
  for (int64_t bucket = 0, position = 0; bucket < num_buckets; ++bucket) {
    for (int64_t piece = 0; piece < pieces.count; ++piece) {
      position += std::exchange(next[piece * num_buckets + bucket], static_cast<I>(position));
    }
    first_of[bucket + 1] = position;
  }
  Scratch<Entry<I>> scratch(size);
  Entry<I>* const entries = scratch.data();
  parallel_for(pieces.count, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      I* const next_of = next.data() + piece * num_buckets;
      for_each(pieces.begin(piece), pieces.begin(piece + 1), [=](int64_t i, int64_t value) {
        Entry<I>* const entry = entries + next_of[key[i] >> bits]++;
        __builtin_prefetch(entry + 2 * kLine / sizeof *entry, 1);
        *entry = {static_cast<I>(key[i]), static_cast<I>(value), static_cast<I>(i)};
      });
    }
  });

  ptr[0] = 0;
  parallel_for(num_buckets, 1, threads, [&](int64_t first, int64_t last) {
    std::vector<I> next_of(int64_t{1} << bits);
    for (int64_t bucket = first; bucket < last; ++bucket) {
      const int64_t first_key = bucket << bits;
      const int64_t keys_of = std::min(int64_t{1} << bits, num_keys - first_key);
      for (int64_t i = first_of[bucket]; i < first_of[bucket + 1]; i += kLine / sizeof(Out)) {
        __builtin_prefetch(out_value + i, 1);
        __builtin_prefetch(out_perm + i, 1);
      }
      const Entry<I>* const begin = entries + first_of[bucket];
      const Entry<I>* const end = entries + first_of[bucket + 1];
      std::fill(next_of.begin(), next_of.end(), 0);
      for (const Entry<I>* entry = begin; entry < end; ++entry) ++next_of[entry->key - first_key];
      auto position = static_cast<I>(first_of[bucket]);
      for (int64_t k = 0; k < keys_of; ++k) {
        position += std::exchange(next_of[k], position);
        ptr[first_key + k + 1] = static_cast<Out>(position);
      }
      for (const Entry<I>* entry = begin; entry < end; ++entry) {
        const I to = next_of[entry->key - first_key]++;
        out_value[to] = static_cast<Out>(entry->value);
        out_perm[to] = static_cast<Out>(entry->position);
      }
    }
  });
}

// Calls f with a value of a type that holds all numbers below `bound`, the narrower the better.
template <class F>
void with_ids(int64_t bound, const F& f) {
  if (bound <= int64_t{std::numeric_limits<uint32_t>::max()}) return f(uint32_t{});
  f(int64_t{});
}

}  // namespace

template <class T, class Out>
void transpose(const T* rowptr, const T* col, int64_t num_rows, int64_t num_cols, int64_t nnz,
               Out* out_colptr, Out* out_row, Out* out_perm, int threads) {
  check_value(std::max(num_rows, nnz) <= std::numeric_limits<Out>::max(), "transpose: ", num_rows,
              " rows and ", nnz,
              " entries do not fit int32; leave `dtype` out, or pass torch.int64");
  check_rowptr("transpose", rowptr, 0, num_rows, nnz, threads);
  check_whole("transpose", rowptr, num_rows, nnz);
  const auto for_each = [&](int64_t begin, int64_t end, const auto& f) {
    int64_t row = std::upper_bound(rowptr, rowptr + num_rows + 1, begin) - rowptr - 1;
    for (int64_t e = begin; e < end; ++row) {
      for (const int64_t stop = std::min<int64_t>(end, rowptr[row + 1]); e < stop; ++e) f(e, row);
    }
  };
  with_ids(std::max({num_rows, num_cols, nnz}), [&](auto id) {
    const Keys<T> keys{"transpose", "col", col, nnz, num_cols};
    sort_by_key<decltype(id)>(keys, threads, out_colptr, out_row, out_perm, for_each);
  });
}

// Rows ascend, and so do the entries that mirror those of a row: the next one of each row is where
// its last one ended. Rows before the one that is read have seen all of theirs mirrored.
template <class T, class W>
bool own_transpose(const T* rowptr, const T* col, const W* weight, int64_t num_rows, int64_t nnz,
                   T* out_end) {
  check_rowptr("own_transpose", rowptr, 0, num_rows, nnz, 1);
  check_whole("own_transpose", rowptr, num_rows, nnz);
  constexpr int64_t kAhead = 8;  // entries
  T* const next = out_end;
  std::copy_n(rowptr, num_rows, next);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t stop = rowptr[i + 1];
    int64_t e = next[i], last = i;
    if (e < stop && col[e] < i) return false;
    for (; e < stop; ++e) {
      const int64_t j = load_id(col + e);
      if (j >= num_rows) break;
      if (j < last) return false;
      last = j;
      if (j == i) continue;
      const int64_t ahead = load_id(col + std::min(e + kAhead, stop - 1));
      if (in_range(ahead, num_rows)) __builtin_prefetch(col + next[ahead]);
      const int64_t mirrored = next[j]++;
      if (mirrored >= rowptr[j + 1] || col[mirrored] != i) return false;
      if (weight != nullptr && std::memcmp(weight + e, weight + mirrored, sizeof(W)) != 0) {
        return false;
      }
    }
    next[i] = static_cast<T>(e);
    bool descends = false;
    for (; e < stop; ++e) descends |= col[e] < num_rows;
    if (descends) return false;
  }
  return true;
}

template <class T>
bool row_pointers(const T* ids, int64_t size, int64_t num_nodes, T* out_rowptr, int threads) {
  check_value(size <= std::numeric_limits<T>::max(), "row_pointers: ", size,
              " edges do not fit 32-bit row pointers; pass int64 `ids`");
  std::atomic<bool> ascends{size == 0 || (ids[0] >= 0 && ids[size - 1] < num_nodes)};
  parallel_for(size, kGrain, threads, [&](int64_t begin, int64_t end) {
    if (!std::is_sorted(ids + std::max<int64_t>(begin - 1, 0), ids + end)) ascends = false;
  });
  if (!ascends) return false;
  parallel_for(size, kGrain, threads, [&](int64_t begin, int64_t end) {
    int64_t last = begin == 0 ? -1 : ids[begin - 1];
    for (int64_t i = begin; i < end; ++i) {
      while (last < ids[i]) out_rowptr[++last] = static_cast<T>(i);
    }
  });
  const int64_t used = size == 0 ? 0 : ids[size - 1] + 1;
  std::fill(out_rowptr + used, out_rowptr + num_nodes + 1, static_cast<T>(size));
  return true;
}

template <class T>
void to_csr(const T* src, const T* dst, int64_t num_nodes, int64_t num_edges, T* out_rowptr,
            T* out_col, T* out_perm, int threads) {
  check_value(num_edges <= std::numeric_limits<T>::max(), "to_csr: ", num_edges,
              " edges do not fit 32-bit row pointers; pass int64 `src` and `dst`");
  check_ids("to_csr", "src", src, num_edges, num_nodes, threads);
  const auto for_each = [&](int64_t begin, int64_t end, const auto& f) {
    for (int64_t e = begin; e < end; ++e) f(e, src[e]);
  };
  with_ids(std::max(num_nodes, num_edges), [&](auto id) {
    const Keys<T> keys{"to_csr", "dst", dst, num_edges, num_nodes};
    sort_by_key<decltype(id)>(keys, threads, out_rowptr, out_col, out_perm, for_each);
  });
}

#define TORCH_GAS_INSTANTIATE(T)                                                             \
  template bool row_pointers(const T*, int64_t, int64_t, T*, int);                           \
  template void to_csr(const T*, const T*, int64_t, int64_t, T*, T*, T*, int);               \
  template void transpose(const T*, const T*, int64_t, int64_t, int64_t, int32_t*, int32_t*, \
                          int32_t*, int);                                                    \
  template void transpose(const T*, const T*, int64_t, int64_t, int64_t, int64_t*, int64_t*, \
                          int64_t*, int);                                                    \
  template bool own_transpose(const T*, const T*, const float*, int64_t, int64_t, T*);       \
  template bool own_transpose(const T*, const T*, const double*, int64_t, int64_t, T*);
TORCH_GAS_INSTANTIATE(int32_t)
TORCH_GAS_INSTANTIATE(int64_t)
#undef TORCH_GAS_INSTANTIATE

}  // namespace torch_gas
