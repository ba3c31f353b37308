#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lit_sft {

/// Bytes of a file.
///
/// @throws UserError where it is not a file, or larger than `most` bytes.
std::string read_file(const std::filesystem::path& file, std::size_t most);

/// A JSON object with its own name in errors, of which nothing is trusted.
class JsonObject {
   public:
    /// @throws UserError where the file is not a JSON object in UTF-8.
    static JsonObject read(const std::filesystem::path& file);

    /// @throws UserError where a text of somebody else is not a JSON object in UTF-8, or is nested deeper than any of
    /// ours: the library copies and writes values by functions that call themselves, and would run out of stack.
    static JsonObject parse(std::string_view text, std::string where, std::string remedy = "");

    /// @param where names it in errors.
    /// @param remedy what errors end with: nothing for what a user wrote.
    JsonObject(nlohmann::json content, std::string where, std::string remedy = "export the model again")
        : content_(std::move(content)), where_(std::move(where)), remedy_(std::move(remedy)) {}

    [[nodiscard]] const std::string& where() const { return where_; }
    [[nodiscard]] const nlohmann::json& content() const { return content_; }
    [[nodiscard]] bool has(const char* key) const { return content_.contains(key) && !content_[key].is_null(); }
    [[nodiscard]] const nlohmann::json& at(const char* key) const;
    /// @throws UserError where the file was written for another version of this program.
    void check_version(std::int64_t version) const;
    /// @throws UserError where the key is missing.
    void require(const char* key) const { (void)at(key); }
    [[nodiscard]] std::string text(const char* key) const;
    /// From `least` to `most`.
    [[nodiscard]] std::int64_t number(const char* key, std::int64_t least, std::int64_t most) const;
    [[nodiscard]] std::vector<std::int64_t> numbers(const char* key, std::int64_t least, std::int64_t most) const;
    [[nodiscard]] std::vector<std::string> texts(const char* key) const;
    /// Texts by ids, which are keys.
    [[nodiscard]] std::map<std::int64_t, std::string> texts_by_id(const char* key) const;
    [[nodiscard]] bool flag(const char* key) const;
    [[nodiscard]] JsonObject object(const char* key) const;
    [[nodiscard]] std::vector<JsonObject> objects(const char* key) const;

    [[noreturn]] void refuse(const char* key, const std::string& expected) const;

   private:
    nlohmann::json content_;
    std::string where_;
    std::string remedy_;
};

}  // namespace lit_sft
