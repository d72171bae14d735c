#include "dropout.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../check.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TORCH_GAS_AVX2 __attribute__((target("avx2")))
#include <immintrin.h>
#endif

namespace torch_gas {
namespace {

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: ten
// rounds on a counter of four words, of which the last is zero here. The first two are an id of 64
// bits.
constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;

struct Keys {
  uint32_t word0[kRounds], word1[kRounds];

  explicit Keys(uint64_t seed) {
    for (int r = 0; r < kRounds; ++r) {
      word0[r] = static_cast<uint32_t>(seed) + r * 0x9E3779B9u;
      word1[r] = static_cast<uint32_t>(seed >> 32) + r * 0xBB67AE85u;
    }
  }
};

// Elements whose random words are drawn at a time; they stay in the first-level cache.
constexpr int64_t kBlock = 256;
constexpr int64_t kCounters = kBlock / 4;

// Consecutive ids.
struct Consecutive {
  uint64_t first;

  uint64_t id(int64_t i) const { return first + i; }
  uint32_t third(int64_t) const { return 0; }

#ifdef TORCH_GAS_AVX2
  TORCH_GAS_AVX2 __m256i ids(int64_t i) const {
    const __m256i begin = _mm256_set1_epi64x(static_cast<int64_t>(first + i));
    return _mm256_add_epi64(begin, _mm256_set_epi64x(3, 2, 1, 0));
  }
  TORCH_GAS_AVX2 __m256i thirds(int64_t) const { return _mm256_setzero_si256(); }
#endif
};

// Ids and third words from arrays.
struct Listed {
  uint64_t first[kCounters] = {}, second[kCounters] = {};

  uint64_t id(int64_t i) const { return first[i]; }
  uint32_t third(int64_t i) const { return static_cast<uint32_t>(second[i]); }

#ifdef TORCH_GAS_AVX2
  TORCH_GAS_AVX2 __m256i ids(int64_t i) const { return load(first + i); }
  TORCH_GAS_AVX2 __m256i thirds(int64_t i) const { return load(second + i); }
  TORCH_GAS_AVX2 static __m256i load(const uint64_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
#endif
};

// Writes the kBlock words of kCounters counters.
template <class Counters>
using Draw = void (*)(const Keys& keys, const Counters& counters, uint32_t* words);

template <class Counters>
void draw(const Keys& keys, const Counters& counters, uint32_t* words) {
  for (int64_t i = 0; i < kCounters; ++i, words += 4) {
    auto c0 = static_cast<uint32_t>(counters.id(i)),
         c1 = static_cast<uint32_t>(counters.id(i) >> 32);
    uint32_t c2 = counters.third(i), c3 = 0;
    for (int r = 0; r < kRounds; ++r) {
      const uint64_t product0 = uint64_t{kMultiplier0} * c0;
      const uint64_t product1 = uint64_t{kMultiplier1} * c2;
      c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ keys.word0[r];
      c1 = static_cast<uint32_t>(product1);
      c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ keys.word1[r];
      c3 = static_cast<uint32_t>(product0);
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
  }
}

#ifdef TORCH_GAS_AVX2
// Four counters, a 64-bit lane each. A word is in the lower half of its lane; what the upper half
// holds is never read, so that no product has to be taken apart. Compilers do not find this form by
// themselves.
struct Lanes {
  __m256i c0, c1, c2, c3;

  TORCH_GAS_AVX2 Lanes(__m256i ids, __m256i thirds) {
    c0 = ids;
    c1 = _mm256_srli_epi64(c0, 32);
    c2 = thirds;
    c3 = _mm256_setzero_si256();
  }

  TORCH_GAS_AVX2 void round(__m256i key0, __m256i key1) {
    const __m256i product0 = _mm256_mul_epu32(_mm256_set1_epi64x(kMultiplier0), c0);
    const __m256i product1 = _mm256_mul_epu32(_mm256_set1_epi64x(kMultiplier1), c2);
    c0 = _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(c1, key0));
    c1 = product1;
    c2 = _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(c3, key1));
    c3 = product0;
  }

  TORCH_GAS_AVX2 void store(uint32_t* words) const {
    // Words 0 and 1 of each counter side by side, and words 2 and 3; then all four.
    const __m256i front = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0b10101010);
    const __m256i back = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0b10101010);
    const __m256i even = _mm256_unpacklo_epi64(front, back);  // counters 0 and 2
    const __m256i odd = _mm256_unpackhi_epi64(front, back);   // counters 1 and 3
    auto* to = reinterpret_cast<__m256i*>(words);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
};

// The same in 40 % of the time. Two sets of lanes hide that a round waits for the one before.
template <class Counters>
TORCH_GAS_AVX2 void draw_avx2(const Keys& keys, const Counters& counters, uint32_t* words) {
  __m256i key0[kRounds], key1[kRounds];
  for (int r = 0; r < kRounds; ++r) {
    key0[r] = _mm256_set1_epi64x(keys.word0[r]);
    key1[r] = _mm256_set1_epi64x(keys.word1[r]);
  }
  for (int64_t i = 0; i < kCounters; i += 8, words += 32) {
    Lanes a(counters.ids(i), counters.thirds(i)), b(counters.ids(i + 4), counters.thirds(i + 4));
    for (int r = 0; r < kRounds; ++r) {
      a.round(key0[r], key1[r]);
      b.round(key0[r], key1[r]);
    }
    a.store(words);
    b.store(words + 16);
  }
}
#endif

template <class Counters>
Draw<Counters> fastest_draw() {
#ifdef TORCH_GAS_AVX2
  if (__builtin_cpu_supports("avx2")) return draw_avx2<Counters>;
#endif
  return draw<Counters>;
}

inline double multiply(double x, double factor) {
  return x * factor;
}

template <class T>
inline T multiply(T x, float factor) {
  T out;
  from_float(to_float(x) * factor, out);
  return out;
}

// Multiplies elements by 0 or 1 / (1 - p).
template <class T>
struct Multiplier {
  using Factor = std::conditional_t<std::is_same_v<T, double>, double, float>;
  uint32_t first_kept;
  Factor scale;
  T block[kBlock] = {};  // a copy, because compilers would not vectorise a loop over x and out

  explicit Multiplier(double p) {
    const auto threshold = static_cast<uint64_t>(std::ldexp(p, 32) + 0.5);
    // No word reaches 2^32, which is none: then all are kept, times 0.
    first_kept = static_cast<uint32_t>(threshold);
    scale = static_cast<Factor>(threshold >> 32 ? 0 : 1 / (1 - p));
  }

  // out[i] = x[i] * (words[i] >= first_kept ? scale : 0), for at most kBlock of them
  void apply(const T* x, T* out, const uint32_t* words, int64_t count) {
    std::memcpy(block, x, count * sizeof(T));
    multiply_kept(block, words);
    std::memcpy(out, block, count * sizeof(T));
  }

  void multiply_kept(T* __restrict x, const uint32_t* __restrict words) const {
    for (int64_t i = 0; i < kBlock; ++i) {
      const int32_t keep =
          words[i] >= first_kept;  // 0 or 1: no branch, which compilers make of `?:`
      x[i] = multiply(x[i], scale * static_cast<Factor>(keep));
    }
  }
};

template <class T>
void dropout(const T* x, T* out, int64_t size, double p, uint64_t seed, int threads) {
  const auto draw = fastest_draw<Consecutive>();
  const Keys keys(seed);
  const int64_t num_blocks = (size + kBlock - 1) / kBlock;
  parallel_for(num_blocks, kGrain / kBlock, threads, [&](int64_t begin, int64_t end) {
    uint32_t words[kBlock];
    Multiplier<T> multiplier(p);
    for (int64_t first = begin * kBlock; first < std::min(end * kBlock, size); first += kBlock) {
      draw(keys, {static_cast<uint64_t>(first / 4)}, words);
      multiplier.apply(x + first, out + first, words, std::min(kBlock, size - first));
    }
  });
}

// Each row has counters of its own, whose last one may have more words than there are channels
// left.
template <class T>
void dropout_rows(const T* x, const int64_t* ids, T* out, int64_t num_rows, int64_t width, double p,
                  uint64_t key, int threads) {
  const auto draw = fastest_draw<Listed>();
  const Keys keys(key);
  const int64_t per_row = (width + 3) / 4, last = width - 4 * (per_row - 1);
  const int64_t num_counters = num_rows * per_row;
  const int64_t num_blocks = (num_counters + kCounters - 1) / kCounters;
  parallel_for(num_blocks, kGrain / kBlock, threads, [&](int64_t begin, int64_t end) {
    uint32_t words[kBlock];
    Listed counters;
    Multiplier<T> multiplier(p);
    int64_t row = begin * kCounters / per_row, block = begin * kCounters % per_row;
    int64_t first = row * width + 4 * block;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t num = std::min(kCounters, num_counters - b * kCounters);
      int64_t ends[kCounters];  // of the words of each counter, among those that are used
      int64_t count = 0;
      for (int64_t i = 0; i < num; ++i) {
        counters.first[i] = static_cast<uint64_t>(ids[row]);
        counters.second[i] = static_cast<uint64_t>(block);
        const bool is_last = ++block == per_row;
        ends[i] = count += is_last ? last : 4;
        if (is_last) block = 0, ++row;
      }
      draw(keys, counters, words);
      if (last != 4) {  // closes the gaps; a counter's words never move past those of the next
        for (int64_t i = 1; i < num; ++i) {
          std::memmove(words + ends[i - 1], words + 4 * i, 4 * sizeof(uint32_t));
        }
      }
      multiplier.apply(x + first, out + first, words, count);
      first += count;
    }
  });
}

}  // namespace

void dropout(const char* x, char* out, DType dtype, int64_t size, double p, uint64_t seed,
             int threads) {
  check_value(p >= 0 && p <= 1, "dropout: `p` must be in [0, 1], but is ", p);
  dispatch_float(dtype, [&](auto value) {
    using T = decltype(value);
    dropout(reinterpret_cast<const T*>(x), reinterpret_cast<T*>(out), size, p, seed, threads);
  });
}

void dropout_rows(const char* x, const int64_t* ids, char* out, DType dtype, int64_t num_rows,
                  int64_t width, double p, uint64_t key, int threads) {
  check_value(p >= 0 && p <= 1, "dropout_rows: `p` must be in [0, 1], but is ", p);
  if (width == 0) return;
  dispatch_float(dtype, [&](auto value) {
    using T = decltype(value);
    dropout_rows(reinterpret_cast<const T*>(x), ids, reinterpret_cast<T*>(out), num_rows, width, p,
                 key, threads);
  });
}

}  // namespace torch_gas
