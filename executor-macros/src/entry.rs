//! `#[executor::main]`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote};
use syn::{Attribute, Error, ItemFn, Result, parse_quote};

use crate::attr;

pub(crate) fn main(attr: TokenStream, item: TokenStream) -> TokenStream {
    generate(attr, item.clone()).unwrap_or_else(|error| {
        let error = error.to_compile_error();
        quote!(#item #error)
    })
}

fn generate(attr: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let krate = attr::parse_main(attr)?;
    let mut function: ItemFn = syn::parse2(item).map_err(|error| {
        Error::new(error.span(), format!("`#[executor::main]` belongs above `fn main`: {error}"))
    })?;
    if !function.sig.inputs.is_empty() {
        return Err(Error::new_spanned(
            &function.sig.inputs,
            "`#[executor::main]` belongs above `fn main()`, which takes no arguments",
        ));
    }
    let init = quote!(#krate::init(););

    let Some(asyncness) = function.sig.asyncness else {
        function.block.stmts.insert(0, parse_quote!(#init));
        return Ok(function.into_token_stream());
    };

    // The runtime's attribute stands below and has not been expanded yet. It gets the function as it is, inside a
    // plain one: a worker must not start a runtime before it knows that it is one.
    if function.attrs.iter().all(is_compilers_own) {
        return Err(Error::new(
            asyncness.span,
            "an `async fn main` needs a runtime: write `#[tokio::main]` (or another runtime's attribute) below \
             `#[executor::main]`",
        ));
    }
    let mut outer = function.clone();
    outer.attrs.retain(is_for_both);
    outer.sig.asyncness = None;
    let name = &function.sig.ident;
    let inner = syn::Ident::new("__async_main", Span::mixed_site());
    let mut function = function.clone();
    function.vis = syn::Visibility::Inherited;
    function.sig.ident = inner.clone();
    let _ = name;
    *outer.block = parse_quote!({
        #init
        #function
        #inner()
    });
    Ok(outer.into_token_stream())
}

/// Attributes that start no runtime.
fn is_compilers_own(attr: &Attribute) -> bool {
    const OWN: [&str; 12] = [
        "allow",
        "cfg",
        "cfg_attr",
        "cold",
        "deny",
        "doc",
        "expect",
        "forbid",
        "inline",
        "must_use",
        "track_caller",
        "warn",
    ];
    OWN.iter().any(|own| attr.path().is_ident(own))
}

/// A function that is not there needs no other around it.
fn is_for_both(attr: &Attribute) -> bool {
    ["cfg", "allow", "expect", "warn", "deny", "forbid"].iter().any(|own| attr.path().is_ident(own))
}
