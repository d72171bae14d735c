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
// rounds on a counter of four words, of which the last two are zero here.
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

// Writes the kBlock words of kBlock / 4 counters, from `counter` on.
using Draw = void (*)(const Keys& keys, uint64_t counter, uint32_t* words);

void draw(const Keys& keys, uint64_t counter, uint32_t* words) {
  for (const uint32_t* end = words + kBlock; words != end; words += 4, ++counter) {
    auto c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
    uint32_t c2 = 0, c3 = 0;
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

  TORCH_GAS_AVX2 explicit Lanes(uint64_t counter) {
    const __m256i first = _mm256_set1_epi64x(static_cast<int64_t>(counter));
    c0 = _mm256_add_epi64(first, _mm256_set_epi64x(3, 2, 1, 0));
    c1 = _mm256_srli_epi64(c0, 32);
    c2 = c3 = _mm256_setzero_si256();
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
TORCH_GAS_AVX2 void draw_avx2(const Keys& keys, uint64_t counter, uint32_t* words) {
  __m256i key0[kRounds], key1[kRounds];
  for (int r = 0; r < kRounds; ++r) {
    key0[r] = _mm256_set1_epi64x(keys.word0[r]);
    key1[r] = _mm256_set1_epi64x(keys.word1[r]);
  }
  for (const uint32_t* end = words + kBlock; words != end; words += 32, counter += 8) {
    Lanes a(counter), b(counter + 4);
    for (int r = 0; r < kRounds; ++r) {
      a.round(key0[r], key1[r]);
      b.round(key0[r], key1[r]);
    }
    a.store(words);
    b.store(words + 16);
  }
}
#endif

Draw fastest_draw() {
#ifdef TORCH_GAS_AVX2
  if (__builtin_cpu_supports("avx2")) return draw_avx2;
#endif
  return draw;
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

// x[i] *= words[i] >= first_kept ? scale : 0
template <class T, class Factor>
void multiply_kept(T* __restrict x, const uint32_t* __restrict words, uint32_t first_kept,
                   Factor scale) {
  for (int64_t i = 0; i < kBlock; ++i) {
    const int32_t keep = words[i] >= first_kept;  // 0 or 1: no branch, which compilers make of `?:`
    x[i] = multiply(x[i], scale * static_cast<Factor>(keep));
  }
}

template <class T>
void dropout(const T* x, T* out, int64_t size, double p, uint64_t seed, int threads) {
  using Factor = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto threshold = static_cast<uint64_t>(std::ldexp(p, 32) + 0.5);
  // No word reaches 2^32, which is none: then all are kept, times 0.
  const auto first_kept = static_cast<uint32_t>(threshold);
  const auto scale = static_cast<Factor>(threshold >> 32 ? 0 : 1 / (1 - p));
  const Draw draw = fastest_draw();
  const Keys keys(seed);
  const int64_t num_blocks = (size + kBlock - 1) / kBlock;
  parallel_for(num_blocks, kGrain / kBlock, threads, [&](int64_t begin, int64_t end) {
    uint32_t words[kBlock];
    T block[kBlock] = {};  // a copy, because compilers would not vectorise a loop over x and out
    for (int64_t first = begin * kBlock; first < std::min(end * kBlock, size); first += kBlock) {
      const int64_t count = std::min(kBlock, size - first);
      draw(keys, static_cast<uint64_t>(first / 4), words);
      std::memcpy(block, x + first, count * sizeof(T));
      multiply_kept(block, words, first_kept, scale);
      std::memcpy(out + first, block, count * sizeof(T));
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

}  // namespace torch_gas
