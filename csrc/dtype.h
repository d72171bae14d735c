// Element types of tables and their conversion.
//
// Conversions are those of `torch.Tensor.to`: round to nearest even, NaN and infinity preserved,
// and double to a 16-bit type by way of float. They are written without branches on the data, so
// that compilers turn loops over them into vector instructions.
//
// A scaled type is a type of rows: C elements q of one byte, and behind them a float32 `scale`,
// which need not be aligned. They stand for q * scale. The scale makes the largest number of a row
// the largest element. A row of zeros has scale 0, and one with NaN or infinity in it scale NaN, so
// that all of it reads as NaN. A new one is a struct below, a value of DType, a line in
// dispatch_scaled() and one in the bindings.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace torch_gas {

#ifdef __CUDACC__
#define TORCH_GAS_HOST_DEVICE __host__ __device__
#else
#define TORCH_GAS_HOST_DEVICE
#endif

// `bytes` stands for all types that are only copied; a row of C of them has C * itemsize bytes.
enum class DType : int { f32, f64, f16, bf16, i8, f8_e4m3, f8_e5m2, bytes };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Scaled types: an element, the largest one, and the largest scale of which that many are finite.
struct Int8 {
  static constexpr float kLargest = 127, kLargestScale = 0x1.020406p+121f;
  int8_t bits;
};
// One sign bit, then the exponent, then the mantissa. Elements are never NaN or infinite.
struct Float8E4M3 {
  static constexpr int kMantissaBits = 3, kBias = 7;
  static constexpr float kLargest = 448, kLargestScale = 0x1.249248p+119f;
  uint8_t bits;
};
struct Float8E5M2 {
  static constexpr int kMantissaBits = 2, kBias = 15;
  static constexpr float kLargest = 57344, kLargestScale = 0x1.249248p+112f;
  uint8_t bits;
};

template <class T>
constexpr bool is_scaled = false;
template <>
inline constexpr bool is_scaled<Int8> = true;
template <>
inline constexpr bool is_scaled<Float8E4M3> = true;
template <>
inline constexpr bool is_scaled<Float8E5M2> = true;

inline int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
    case DType::f16:
      return 2;
    case DType::bf16:
      return 2;
    case DType::i8:
    case DType::f8_e4m3:
    case DType::f8_e5m2:
    case DType::bytes:
      return 1;
  }
  throw std::invalid_argument("unknown element type");
}

// Calls f with a value of the C++ type of a scaled `dtype`, if it is one, and says so.
template <class F>
bool dispatch_scaled(DType dtype, const F& f) {
  if (dtype == DType::i8) return f(Int8{}), true;
  if (dtype == DType::f8_e4m3) return f(Float8E4M3{}), true;
  if (dtype == DType::f8_e5m2) return f(Float8E5M2{}), true;
  return false;
}

// Bytes of a row of `num_cols` numbers.
inline int64_t row_bytes(DType dtype, int64_t num_cols) {
  const bool has_scale = dispatch_scaled(dtype, [](auto) {});
  return num_cols * element_size(dtype) + (has_scale ? int64_t{sizeof(float)} : 0);
}

// Calls f with a value of the C++ type of a floating-point `dtype`.
template <class F>
void dispatch_float(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(float{});
    case DType::f64:
      return f(double{});
    case DType::f16:
      return f(Half{});
    case DType::bf16:
      return f(BFloat16{});
    default:
      break;
  }
  throw std::invalid_argument("rows that are no floating-point numbers cannot change their type");
}

inline constexpr char kNarrowSums[] =
    "sums must be float32 or float64, and no narrower than what is added";

TORCH_GAS_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

TORCH_GAS_HOST_DEVICE inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) {
  return x;
}
inline float to_float(double x) {
  return static_cast<float>(x);
}
inline float to_float(BFloat16 x) {
  return bits_float(uint32_t{x.bits} << 16);
}

inline float to_float(Half x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t rebiased = magnitude + ((127 - 15) << 23);
  // A subnormal half is mantissa * 2^-24: read it as 2^-14 * (1 + mantissa) and take 2^-14 away.
  const float subnormal = bits_float(rebiased + (1 << 23)) - bits_float(113 << 23);
  const uint32_t special = rebiased + ((128 - 16) << 23);  // infinity and NaN: exponent 255
  const uint32_t bits = magnitude >= (0x7c00u << 13)  ? special
                        : magnitude < (0x0400u << 13) ? float_bits(subnormal)
                                                      : rebiased;
  return bits_float(bits | uint32_t(x.bits & 0x8000) << 16);
}

inline void from_float(float x, float& out) {
  out = x;
}
inline void from_float(float x, double& out) {
  out = x;
}

inline void from_float(float x, BFloat16& out) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  out.bits =
      static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16 | 0x40) : rounded);
}

inline void from_float(float x, Half& out) {
  const uint32_t bits = float_bits(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  // Below 2^-14 the result is subnormal: adding 1/2 leaves its rounded mantissa in the low bits.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t half = magnitude >= (143u << 23)  ? special
                        : magnitude < (113u << 23) ? subnormal
                                                   : normal;
  out.bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
}

template <class From, class To>
inline To convert(From x) {
  To out;
  from_float(to_float(x), out);
  return out;
}

// The bits of |x|: they are ordered as the numbers are, NaN above infinity.
TORCH_GAS_HOST_DEVICE inline uint32_t magnitude_bits(float x) {
  return float_bits(x) & 0x7fffffff;
}

// Elements as numbers, and the nearest element to a number up to the largest; ties go to even.
TORCH_GAS_HOST_DEVICE inline float to_float(Int8 q) {
  return q.bits;
}
// Behind the point of 1.5 * 2^23 there are no fractions: the sum has the rounded number in its low
// bits.
TORCH_GAS_HOST_DEVICE inline void from_float(float q, Int8& out) {
  out.bits = static_cast<int8_t>(float_bits(q + 0x1.8p+23f));
}

template <class Float8>
TORCH_GAS_HOST_DEVICE inline float to_float(Float8 q) {
  constexpr uint32_t kShift = 23 - Float8::kMantissaBits;
  const uint32_t magnitude = uint32_t(q.bits & 0x7f) << kShift;
  const uint32_t rebiased = magnitude + (uint32_t{127 - Float8::kBias} << 23);
  // As with Half: a subnormal is read as the smallest normal number and its mantissa.
  const float subnormal =
      bits_float(rebiased + (1 << 23)) - bits_float(uint32_t{128 - Float8::kBias} << 23);
  const uint32_t bits = magnitude < (1u << 23) ? float_bits(subnormal) : rebiased;
  return bits_float(bits | uint32_t(q.bits & 0x80) << 24);
}

template <class Float8>
TORCH_GAS_HOST_DEVICE inline void from_float(float q, Float8& out) {
  constexpr uint32_t kShift = 23 - Float8::kMantissaBits;
  // A float of this size has the smallest subnormal as its last bit.
  constexpr uint32_t kOfSubnormals = uint32_t{127 + 24 - Float8::kBias - Float8::kMantissaBits}
                                     << 23;
  const uint32_t magnitude = magnitude_bits(q);
  const uint32_t subnormal =
      float_bits(bits_float(magnitude) + bits_float(kOfSubnormals)) - kOfSubnormals;
  const uint32_t normal = (magnitude - (uint32_t{127 - Float8::kBias} << 23) +
                           ((1u << (kShift - 1)) - 1) + (magnitude >> kShift & 1)) >>
                          kShift;
  const bool is_subnormal = magnitude < (uint32_t{128 - Float8::kBias} << 23);
  out.bits =
      static_cast<uint8_t>((is_subnormal ? subnormal : normal) | (float_bits(q) >> 24 & 0x80));
}

// The scale of a row of scaled elements Q, from the largest magnitude_bits() of its numbers.
template <class Q>
TORCH_GAS_HOST_DEVICE inline float row_scale(uint32_t largest) {
  if (largest >= 0x7f800000) return bits_float(0x7fc00000);
  const float scale = bits_float(largest) / Q::kLargest;
  return scale < Q::kLargestScale ? scale : Q::kLargestScale;
}

// The element for x in a row with a positive `scale`.
template <class Q>
TORCH_GAS_HOST_DEVICE inline Q to_scaled(float x, float scale) {
  float q = x / scale;
  q = q < Q::kLargest ? q : Q::kLargest;  // a subnormal scale is rounded, and may be too small
  q = q > -Q::kLargest ? q : -Q::kLargest;
  Q out;
  from_float(q, out);
  return out;
}

}  // namespace torch_gas
