//! Checks that a function can be a task function. Each error points at the token that causes it,
//! and all errors are reported together.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::{
    Attribute, Error, FnArg, GenericParam, Generics, Ident, Pat, Result, ReturnType, Safety,
    Signature, Token, Type, Visibility,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

use crate::types;

/// The signature of a task function that has passed all checks. Its body is not parsed.
pub(crate) struct TaskFunction {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) is_async: bool,
    pub(crate) ident: Ident,
    /// Lifetime parameters only.
    pub(crate) generics: Generics,
    pub(crate) params: Vec<Param>,
    /// `None` for a function without `->`.
    pub(crate) output: Option<Type>,
}

pub(crate) struct Param {
    /// The parameter's own name, or `arg0`, `arg1` and so on where the parameter is a pattern.
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
}

/// Attributes, visibility and signature of a function. Its body is not parsed: it only has to be
/// there.
struct Head {
    attrs: Vec<Attribute>,
    vis: Visibility,
    sig: Signature,
}

impl Parse for Head {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis: Visibility = input.parse()?;
        let what = input.span();
        let is_item = [
            input.peek(Token![struct]),
            input.peek(Token![enum]),
            input.peek(Token![impl]),
            input.peek(Token![trait]),
            input.peek(Token![mod]),
            input.peek(Token![static]),
            input.peek(Token![type]),
            input.peek(Token![use]),
            input.peek(Token![const])
                && !input.peek2(Token![fn])
                && !input.peek2(Token![async])
                && !input.peek2(Token![unsafe])
                && !input.peek2(Token![extern]),
        ];
        if is_item.contains(&true) {
            return Err(Error::new(
                what,
                "`#[task]` can only be used on a function or an `impl` block",
            ));
        }
        let sig: Signature = input.parse()?;
        if input.peek(Token![;]) {
            return Err(input.error("a task function needs a body"));
        }
        input.parse::<TokenStream>()?;
        Ok(Head { attrs, vis, sig })
    }
}

pub(crate) fn check(item: TokenStream) -> Result<TaskFunction> {
    let Head { attrs, vis, sig } = syn::parse2(item)?;
    let mut refusals = Refusals::default();

    if let Safety::Unsafe(token) = &sig.safety {
        refusals.add(
            token.span,
            "a task function cannot be `unsafe`: the worker that calls it cannot uphold its safety \
             requirements; wrap the call in a safe function",
        );
    }
    if let Some(abi) = &sig.abi {
        refusals.add(
            abi.extern_token.span,
            "a task function must use Rust's own calling convention: remove `extern`",
        );
    }
    if let Some(variadic) = &sig.variadic {
        refusals.add(variadic.span(), "a task function must have a fixed number of parameters");
    }
    refuse_parameters(&sig.generics, "worker", "function", &mut refusals);

    let mut params: Vec<Param> = Vec::with_capacity(sig.inputs.len());
    let names: Vec<Ident> = sig.inputs.iter().filter_map(plain_name).collect();
    for (i, input) in sig.inputs.iter().enumerate() {
        match input {
            FnArg::Receiver(receiver) => refusals.add(
                receiver.self_token.span,
                "a method becomes a task by `#[task]` on its whole `impl` block, not on the method",
            ),
            FnArg::Typed(param) => {
                if let Some(cfg) = param.attrs.iter().find(|attr| attr.path().is_ident("cfg")) {
                    refusals.add(
                        cfg.span(),
                        "a parameter cannot have `#[cfg]`: put it on the whole task function, and write one \
                         function for each signature",
                    );
                }
                types::check_param(&param.ty, &mut refusals);
                let ident = plain_name(input).unwrap_or_else(|| unused_name(i, &names));
                params.push(Param { ident, ty: (*param.ty).clone() });
            }
        }
    }

    let output = match sig.output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => {
            types::check_output(&ty, &mut refusals);
            Some(*ty)
        }
    };

    refusals.into_result()?;
    Ok(TaskFunction {
        attrs,
        vis,
        is_async: sig.asyncness.is_some(),
        ident: sig.ident,
        generics: sig.generics,
        params,
        output,
    })
}

/// Refuses type and const parameters. `process` is where the function runs, and `what` is what it
/// is called.
pub(crate) fn refuse_parameters(
    generics: &Generics,
    process: &str,
    what: &str,
    refusals: &mut Refusals,
) {
    for param in &generics.params {
        match param {
            GenericParam::Lifetime(_) => {}
            GenericParam::Type(param) => refusals.add(
                param.ident.span(),
                &format!(
                    "a task function cannot have type parameters: the {process} must know the types; write one \
                     {what} for each type, or take an enum"
                ),
            ),
            GenericParam::Const(param) => refusals.add(
                param.ident.span(),
                &format!(
                    "a task function cannot have const parameters: the {process} must know the types; take the \
                     value as an argument"
                ),
            ),
        }
    }
}

/// The name of a parameter that is a plain identifier: `a` for both `a: i64` and `mut a: i64`.
pub(crate) fn plain_name(input: &FnArg) -> Option<Ident> {
    match input {
        FnArg::Typed(param) => match &*param.pat {
            Pat::Ident(pat) if pat.subpat.is_none() => Some(pat.ident.clone()),
            _ => None,
        },
        FnArg::Receiver(_) => None,
    }
}

/// A name for a parameter without one: `arg0` for the first parameter. Underscores are added while
/// another parameter has the same name.
pub(crate) fn unused_name(i: usize, names: &[Ident]) -> Ident {
    let mut name = format!("arg{i}");
    while names.iter().any(|other| *other == name) {
        name.push('_');
    }
    Ident::new(&name, Span::call_site())
}

/// All errors found in one function, combined into one `syn::Error`.
#[derive(Default)]
pub(crate) struct Refusals {
    all: Option<Error>,
    count: usize,
    /// What the function is called in messages, if it is no task function.
    subject: Option<&'static str>,
}

impl Refusals {
    /// Errors found in something that is called `subject`.
    pub(crate) fn of(subject: &'static str) -> Self {
        Refusals { subject: Some(subject), ..Refusals::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn add(&mut self, span: Span, message: &str) {
        self.add_error(Error::new(span, self.message(message)));
    }

    pub(crate) fn add_spanned(&mut self, tokens: impl ToTokens, message: &str) {
        self.add_error(Error::new_spanned(tokens, self.message(message)));
    }

    fn message(&self, message: &str) -> String {
        match self.subject {
            Some(subject) => message.replace("a task function", subject),
            None => message.to_owned(),
        }
    }

    fn add_error(&mut self, error: Error) {
        self.count += 1;
        match &mut self.all {
            None => self.all = Some(error),
            Some(all) => all.combine(error),
        }
    }

    pub(crate) fn into_result(self) -> Result<()> {
        self.all.map_or(Ok(()), Err)
    }
}
